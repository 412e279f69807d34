"""R3GAN: a GAN of residual blocks without norms, style or tricks, for a relativistic loss with R1 and R2.

  block(x) = x + W3 a(W2 a(W1 x + b1) + b2),   W2 a grouped 3x3 convolution twice as wide                (1)
  a(x) = max(x, 0.2 x),   Var W = 2 / 1.04 / fan_in / L^(1/2) for W1 and W2 of L blocks, W3 = 0          (2)
  generator      basis(z) at 4x4, then blocks, doubled by a filter between sizes                        (3)
  discriminator  the same the other way round, down to one number                                       (4)

Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern Baseline GAN". Eq. 2 is Fixup's scaling
(Zhang et al. 2019). Grouped convolutions have `group` features for each group.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.dcgan import doublings
from jaxgen.models.layers.convolution import convolve
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.upfirdn import downsample, upsample
from jaxgen.typing import Array, Cond, Float, Key

_GAIN = math.sqrt(2 / (1 + 0.2**2))
_UNIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


class _Conv(nn.Module):
  """A convolution without bias, with the parameters of `nn.Conv`; groups are fast on a CPU, gradients included."""

  features: int
  size: int
  kernel_init: nn.initializers.Initializer
  dtype: Any
  groups: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w o']:
    shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    return convolve(x.astype(self.dtype), kernel, pad=self.size // 2, groups=self.groups)


class Block(nn.Module):
  """Eq. 1.

  Attributes:
    group: features of a group.
    blocks: L of Eq. 2.
    dtype: dtype of activations.
  """

  group: int
  blocks: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    wide = 2 * x.shape[-1]
    if wide % self.group:
      raise ValueError(f'{wide} features do not divide into groups of {self.group}; change width or group')
    init = nn.initializers.variance_scaling(_GAIN**2 * self.blocks**-0.5, 'fan_in', 'normal')
    y = self._activated(_Conv(wide, 1, init, self.dtype, name='conv_1')(x), 'bias_1')
    y = self._activated(_Conv(wide, 3, init, self.dtype, wide // self.group, name='conv_2')(y), 'bias_2')
    return x + _Conv(x.shape[-1], 1, nn.initializers.zeros_init(), self.dtype, name='conv_3')(y)

  def _activated(self, x: Array, name: str) -> Array:
    bias = self.param(name, nn.initializers.zeros_init(), x.shape[-1:])
    return nn.leaky_relu(x + bias.reshape(1, 1, 1, -1).astype(x.dtype), 0.2)


class R3GANGenerator(nn.Module):
  """Eq. 3.

  Attributes:
    widths: features at 4x4, 8x8, ...; the last is at the images' size.
    blocks: number of blocks at each size.
    group: features of a group of the 3x3 convolutions.
    channels: number of channels of the images.
    num_classes: labels are 0 to num_classes - 1; 0 for none.
    dtype: dtype of activations.
  """

  widths: tuple[int, ...] = (768, 768, 768, 768)
  blocks: int = 2
  group: int = 16
  channels: int = 3
  num_classes: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, z: Float[Array, 'b z'], cond: Cond, *, keys: Key[Array, ' b'], train: bool = False
  ) -> Float[Array, 'b h w c']:
    total = self.blocks * len(self.widths)
    if self.num_classes:
      label = jax.nn.one_hot(cond['label'], self.num_classes)
      embedding = Linear(z.shape[-1], use_bias=False, kernel_init=_UNIT, name='labels')(label)
      z = jnp.concatenate([z, embedding], axis=-1)
    basis = self.param('basis', nn.initializers.normal(1.0), (4, 4, self.widths[0]))
    scale = Linear(self.widths[0], use_bias=False, kernel_init=_UNIT, name='in')(z)
    x = (basis[None] * scale[:, None, None]).astype(self.dtype)
    for level, width in enumerate(self.widths):
      if level:
        x = x if width == x.shape[-1] else _Conv(width, 1, _UNIT, self.dtype, name=f'to_{level}')(x)
        x = upsample(x)
      for block in range(self.blocks):
        x = Block(self.group, total, self.dtype, name=f'level_{level}_block_{block}')(x)
    return _Conv(self.channels, 1, _UNIT, self.dtype, name='out')(x).astype(jnp.float32)


class R3GANDiscriminator(nn.Module):
  """Eq. 4.

  Attributes:
    widths: features at the images' size, half of it, ... 4x4.
    blocks: number of blocks at each size.
    group: features of a group of the 3x3 convolutions.
    num_classes: labels are 0 to num_classes - 1, and the logit is a product with a label's embedding; 0 for none.
    dtype: dtype of activations.
  """

  widths: tuple[int, ...] = (768, 768, 768, 768)
  blocks: int = 2
  group: int = 16
  num_classes: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w c'], cond: Cond, *, train: bool = False) -> Float[Array, ' b']:
    if doublings(images.shape[1]) + 1 != len(self.widths):
      raise ValueError(
        f'images of side {images.shape[1]} have {doublings(images.shape[1]) + 1} sizes down to 4x4, '
        f'but there are {len(self.widths)} widths'
      )
    total = self.blocks * len(self.widths)
    x = _Conv(self.widths[0], 1, _UNIT, self.dtype, name='in')(images.astype(self.dtype))
    for level, width in enumerate(self.widths):
      if level:
        x = downsample(x)
        x = x if width == x.shape[-1] else _Conv(width, 1, _UNIT, self.dtype, name=f'to_{level}')(x)
      for block in range(self.blocks):
        x = Block(self.group, total, self.dtype, name=f'level_{level}_block_{block}')(x)
    init = nn.initializers.normal(1 / 4)  # fan-in of 4x4 pixels
    basis = self.param('basis', init, (4, 4, x.shape[-1]))
    x = (x.astype(jnp.float32) * basis[None]).sum((1, 2))  # not a product of c matrices, which would be sharded by c
    if not self.num_classes:
      return Linear(1, use_bias=False, kernel_init=_UNIT, name='out')(x)[:, 0]
    width = self.widths[0]
    label = jax.nn.one_hot(cond['label'], self.num_classes)
    small = nn.initializers.variance_scaling(1 / width, 'fan_in', 'normal')
    embedding = Linear(width, use_bias=False, kernel_init=small, name='labels')(label)
    return jnp.sum(Linear(width, use_bias=False, kernel_init=_UNIT, name='out')(x) * embedding, axis=-1)
