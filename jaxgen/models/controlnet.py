"""ControlNet: a trainable copy of a U-Net's encoder that reads a control picture.

  h = conv_in(x) + hint(control)                                                             (1)
  r_i = zero_i(h_i),  h_i the results of the copy's encoder and middle                       (2)
  net(x) with its own h_i + scale r_i in the place of h_i                                    (3)

The last layer of `hint` and all zero_i, 1x1 convolutions, start at zero, so that the first step is the net's.
Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models". Several add their residuals.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models import unet
from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.resample import halve
from jaxgen.models.unet import UNet
from jaxgen.typing import Array, Cond, Float

_zeros = nn.initializers.zeros_init()
HINT = (16, 32, 96, 256)  # features of the hint's layers
# Guess mode: factors of the residuals from the largest image to the middle, after lllyasviel's code.
GUESS = tuple(10 ** (-1 + i / 12) for i in range(13))


class ControlNet(nn.Module):
  """The branch: `(x, t, cond) -> residuals`, Eqs. 1 and 2.

  Attributes:
    net: the U-Net whose encoder and middle it has.
    hint: features of the hint's layers.
    strides: how often the hint halves the control, which is so much larger than what the first convolution sees: 3 for
      latents, 0 for pixels, 1 for pixels in patches of 2.
    field: the entry of `cond` that it reads, float b h w 3 in [0, 1]; FIELD_scale, float b or b r, if it is given,
      multiplies all residuals or each.
  """

  net: UNet
  hint: tuple[int, ...] = HINT
  strides: int = 3
  field: str = 'control'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, ' b'], cond: Cond, *, train: bool = False
  ) -> tuple[Float[Array, 'b h2 w2 c2'], ...]:
    net, control = self.net, cond[self.field]
    height, width = ((side << self.strides) // net.patch for side in x.shape[1:3])
    if control.shape[1:3] != (height, width):
      raise ValueError(
        f'{self.field} is {control.shape[1]}x{control.shape[2]}; for images or latents of {x.shape[1]}x{x.shape[2]} '
        f'it must be {height}x{width}'
      )
    dropout = net.dropout if train else 0.0
    c = unet.conditioned(net, t, cond)
    x = unet.conv_in(net, x)
    x += Hint(self.hint, self.strides, x.shape[-1], net.dtype, name='hint')(control)  # Eq. 1
    made = [x]
    for i, stage in enumerate(unet.encoder(net)):
      x = unet.run(net, stage, x, c, cond, halve, dropout=dropout, name=f'encoder_{i}')
      made.append(x)
    for i, stage in enumerate(unet.middle(net)):
      x = unet.run(net, stage, x, c, cond, None, dropout=dropout, name=f'middle_{i}')
    made.append(x)
    residuals = [
      Linear(h.shape[-1], kernel_init=_zeros, dtype=net.dtype, name=f'zero_{i}')(h) for i, h in enumerate(made)
    ]
    scales = scales_of(cond, self.field, len(residuals))
    return tuple(r * s[:, None, None, None].astype(r.dtype) for r, s in zip(residuals, scales, strict=True))


def scales_of(cond: Cond, field: str, count: int) -> Float[Array, 'r b']:
  """The scale of each of `count` residuals, `cond['FIELD_scale']`; 1 where it is not given.

  Raises:
    ValueError: there are neither one scale nor one for each residual.
  """
  scale = cond.get(f'{field}_scale')
  if scale is None:
    return jnp.ones((count, 1))
  each = scale if scale.ndim == 2 else scale[:, None]
  if each.shape[1] not in (1, count):
    raise ValueError(f'{field}_scale has {each.shape[1]} factors for {count} residuals; give 1 or all')
  return jnp.broadcast_to(each.T, (count, len(each)))


class Hint(nn.Module):
  """hint of Eq. 1."""

  widths: tuple[int, ...]
  strides: int
  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w 3']) -> Float[Array, 'b h2 w2 c']:
    x = nn.silu(Conv(self.widths[0], padding=1, dtype=self.dtype, name='in')(x.astype(self.dtype)))
    for i, (before, after) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
      strides = 2 if i < self.strides else 1
      x = nn.silu(Conv(before, padding=1, dtype=self.dtype, name=f'conv_{2 * i}')(x))
      x = nn.silu(Conv(after, strides=strides, padding=1, dtype=self.dtype, name=f'conv_{2 * i + 1}')(x))
    return Conv(self.features, padding=1, kernel_init=_zeros, dtype=self.dtype, name='out')(x)


class Controlled(nn.Module):
  """Eq. 3: a U-Net under control, whose own parameters stay at the top of the tree.

  Attributes:
    net: the U-Net.
    controls: the branches, each with a `field` of its own.
  """

  net: UNet
  controls: tuple[ControlNet, ...]

  def setup(self) -> None:
    nn.share_scope(self, self.net)

  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, ' b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w o']:
    made = [control(x, t, cond, train=train) for control in self.controls]
    total = tuple(sum(parts[1:], parts[0]) for parts in zip(*made, strict=True))
    more: Any = {'residuals': total}
    return self.net(x, t, {**cond, **more}, train=train)
