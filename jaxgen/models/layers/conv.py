"""A convolution with the parameters and the numbers of `nn.Conv`; its kernel may be a LowRank (layers/low_rank.py)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxgen.models.layers.convolution import LAYOUT
from jaxgen.models.layers.int8 import dense
from jaxgen.models.layers.low_rank import LowRank, dropped, kernel_param
from jaxgen.typing import Array, Float

Padding = int | str | Sequence[tuple[int, int]]


class Conv(nn.Module):
  """y = x * W + b on images.

  Attributes:
    features: number of output features.
    size: sides of the kernel, or the side of a square one.
    strides: pixels from one value to the next, down and to the right.
    padding: pixels of zeros on each side, or (before, after) down and to the right, or 'SAME' or 'VALID'.
    use_bias: whether b is added.
    dtype: dtype of the product; the parameters are float32.
    kernel_init, bias_init: initialise the parameters.
  """

  features: int
  size: int | tuple[int, int] = 3
  strides: int = 1
  padding: Padding = 'SAME'
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b _ _ o']:
    size = self.size if isinstance(self.size, tuple) else (self.size, self.size)
    kernel = kernel_param(self, self.kernel_init, (*size, x.shape[-1], self.features))
    x = jnp.asarray(x, self.dtype)
    if isinstance(kernel, LowRank):
      y = self._product(x, kernel.base)
      low = jnp.asarray(kernel.scale, self.dtype) * self._product(dropped(self, x, kernel), kernel.a)  # b h w r
      b = jnp.asarray(kernel.b, self.dtype)
      y += lax.conv_general_dilated(low, b, (1, 1), 'VALID', dimension_numbers=LAYOUT)
    else:
      y = self._product(x, kernel)
    if not self.use_bias:
      return y
    bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
    return y + jnp.asarray(bias, self.dtype).reshape(1, 1, 1, -1)

  def _product(self, x: Array, kernel: Any) -> Array:
    pad = self.padding
    pads = [(pad, pad)] * 2 if isinstance(pad, int) else pad if isinstance(pad, str) else [tuple(p) for p in pad]
    strides = (self.strides, self.strides)
    return lax.conv_general_dilated(x, dense(kernel, self.dtype), strides, pads, dimension_numbers=LAYOUT)
