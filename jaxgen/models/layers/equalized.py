"""Layers with an equalised learning rate: weights are stored at unit variance and scaled when they are used.

  y = x (g W) + m b,   g = m / sqrt(fan_in),   W ~ N(0, 1 / m^2)                                       (1)

An optimizer that normalises its steps (Adam) then moves every layer at the same relative speed, m times the others'.
Karras et al. 2018, "Progressive Growing of GANs". Activations keep unit variance by Eq. 2:

  a(x) = sqrt(2) max(x, 0.2 x)                                                                         (2)
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.convolution import convolve, convolve_down, convolve_transposed
from jaxgen.models.layers.linear import biased
from jaxgen.models.layers.upfirdn import blur, downsample
from jaxgen.typing import Array, Float


def leaky(x: Float[Array, '...'], gain: float = 1.0, clamp: float | None = None) -> Float[Array, '...']:
  """Eq. 2, times `gain`, clamped to [-clamp, clamp] times `gain`."""
  y = nn.leaky_relu(x, 0.2) * jnp.asarray(math.sqrt(2) * gain, x.dtype)
  return y if clamp is None else jnp.clip(y, -clamp * gain, clamp * gain)


def convolve_up(x: Float[Array, 'b h w c'], kernel: Float[Array, 'i j c o']) -> Float[Array, 'b _ _ o']:
  """An image of twice the side: a 3x3 transposed convolution, then the low-pass filter."""
  return blur(convolve_transposed(x, kernel), pad=(1, 1), gain=4.0)


class EqualizedDense(nn.Module):
  """Eq. 1.

  Attributes:
    features: number of output features.
    rate: m, the relative learning rate.
    bias: initial value of m b; None for no bias.
    dtype: dtype of the product; parameters are float32.
  """

  features: int
  rate: float = 1.0
  bias: float | None = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b i']) -> Float[Array, 'b o']:
    kernel = self.param('kernel', nn.initializers.normal(1.0 / self.rate), (x.shape[-1], self.features))
    y = x.astype(self.dtype) @ (kernel * (self.rate / math.sqrt(x.shape[-1]))).astype(self.dtype)  # Eq. 1
    if self.bias is None:
      return y
    bias = self.param('bias', nn.initializers.constant(self.bias / self.rate), (self.features,))
    return y + (bias * self.rate).reshape(1, -1).astype(self.dtype)


class EqualizedConv(nn.Module):
  """Eq. 1 for images, on the grid of the input or, with `down`, filtered and then strided.

  Attributes:
    features: number of output features.
    size: side of the kernel.
    down: halves the image.
    same: zeros around the image keep its size; else only whole kernels count.
    bias: whether a bias is added.
    gain: gain of the weights, where the next activation needs another variance.
    dtype: dtype of activations; parameters are float32.
  """

  features: int
  size: int = 3
  down: bool = False
  same: bool = True
  bias: bool = True
  gain: float = 1.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b _ _ o']:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', jax.random.normal, shape) * (self.gain / math.sqrt(math.prod(shape[:3])))  # Eq. 1
    x = x.astype(self.dtype)
    if self.down and self.size == 1:
      x = convolve(downsample(x), kernel)
    elif self.down:
      x = convolve_down(blur(x, pad=(2, 2)), kernel)
    else:
      x = convolve(x, kernel, pad=self.size // 2 if self.same else 0)
    if not self.bias:
      return x
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    return biased(x, jnp.asarray(bias, self.dtype))
