"""Half a U-Net that classifies noisy images, for classifier guidance (Dhariwal & Nichol 2021).

  c = time(t);  the encoder and the middle of models/unet.py;  logits = out(mean over pixels of silu(norm(x)))      (1)

Differs from ADM's, which pools by attention.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.layers.attention_block import AttentionBlock
from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.group_norm import GroupNorm
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.resample import halve
from jaxgen.models.unet import ADM, Block, Style, TimeEmbedding
from jaxgen.typing import Array, Cond, Float


class UNetClassifier(nn.Module):
  """The network: `(x, t, cond) -> logits`.

  Attributes:
    num_classes: number of logits.
    width, multipliers, blocks, attention, heads, dropout, groups, style, dtype: as in `UNet`; it resizes in blocks.
  """

  num_classes: int
  width: int
  multipliers: tuple[int, ...]
  blocks: int
  attention: tuple[int, ...] = ()
  heads: int = 1
  dropout: float = 0.0
  groups: int = 32
  style: Style = ADM
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b y']:
    """Classifies.

    Args:
      x: images or latents at time t.
      t: time as the sinusoid sees it (`Process.network_time`).
      cond: not used; part of every network's signature.
      train: whether dropout is on; its rng is 'dropout'.
    """
    c = TimeEmbedding(4 * self.width, name='time_embed')(self.style.time_features(t, self.width))
    c = nn.silu(c).astype(self.dtype)
    shared = (self.style, self.groups, self.dtype)

    def block(x: Array, name: str, features: int, resize: Any = None) -> Array:
      return Block(features, self.dropout if train else 0.0, resize, *shared, name=name)(x, c)

    def attend(x: Array, name: str) -> Array:
      return AttentionBlock(self.groups, self.style.eps, self.heads, dtype=self.dtype, name=name)(x)

    x = Conv(self.multipliers[0] * self.width, dtype=self.dtype, name='conv_in')(x.astype(self.dtype))
    for level, multiplier in enumerate(self.multipliers):
      if level:
        x = block(x, f'level_{level}_resize', x.shape[-1], halve)
      for i in range(self.blocks):
        x = block(x, f'level_{level}_block_{i}', multiplier * self.width)
        x = attend(x, f'level_{level}_attention_{i}') if level in self.attention else x
    x = block(x, 'middle_block_0', x.shape[-1])
    x = block(attend(x, 'middle_attention'), 'middle_block_1', x.shape[-1])
    x = GroupNorm(self.groups, dtype=self.dtype, name='norm_out')(x)
    x = nn.silu(x.astype(jnp.float32)).mean(axis=(1, 2))
    return Linear(self.num_classes, kernel_init=nn.initializers.zeros_init(), name='out')(x)  # Eq. 1
