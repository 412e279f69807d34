"""Fully connected GANs, for data of a few numbers: points that are images of one pixel.

generator      z -> (dense, relu) x depth -> images                                                  (1)
discriminator  images -> (dense, leaky relu) x depth -> logits                                       (2)
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.layers.critics import MinibatchDiscrimination, dense
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Cond, Float, Key

_lecun = nn.initializers.lecun_normal()


class MLPGenerator(nn.Module):
  """Eq. 1.

  Attributes:
    shape: shape of one image, `(h, w, c)`.
    width, depth: width and number of the hidden layers.
  """

  shape: tuple[int, ...]
  width: int = 128
  depth: int = 3

  @nn.compact
  def __call__(
    self, z: Float[Array, 'b z'], cond: Cond, *, keys: Key[Array, ' b'], train: bool = False
  ) -> Float[Array, 'b h w c']:
    x = z
    for layer in range(self.depth):
      x = nn.relu(Linear(self.width, kernel_init=_lecun, name=f'Dense_{layer}')(x))
    return Linear(math.prod(self.shape), kernel_init=_lecun, name=f'Dense_{self.depth}')(x).reshape(-1, *self.shape)


class MLPDiscriminator(nn.Module):
  """Eq. 2.

  Attributes:
    width, depth: width and number of the hidden layers.
    spectral: divides every kernel by its largest singular value.
    kernels: number of kernels of the minibatch discrimination before the last layer; 0 for none.
  """

  width: int = 128
  depth: int = 3
  spectral: bool = False
  kernels: int = 0

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w c'], cond: Cond, *, train: bool = False) -> Float[Array, ' b']:
    x = images.reshape(len(images), -1)
    for layer in range(self.depth):
      x = nn.leaky_relu(dense(self.width, spectral=self.spectral, train=train, name=f'dense_{layer}')(x), 0.2)
    if self.kernels:
      x = jnp.concatenate([x, MinibatchDiscrimination(self.kernels)(x)], axis=-1)
    return dense(1, spectral=self.spectral, train=train, name='out')(x)[:, 0]


class MLPDenoiser(nn.Module):
  """A denoiser of such data: (dense, silu) x depth on the values and the time.

  Attributes:
    width, depth: width and number of the hidden layers.
  """

  width: int = 128
  depth: int = 3

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, ' b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w c']:
    h = jnp.concatenate([x.reshape(len(x), -1), t[:, None] / 1000], axis=1)
    for layer in range(self.depth):
      h = nn.silu(Linear(self.width, kernel_init=_lecun, name=f'dense_{layer}')(h))
    return Linear(x[0].size, kernel_init=_lecun, name='out')(h).reshape(x.shape)
