"""A residual block of self-attention over the pixels of an image, as U-Nets and autoencoders have it.

y = x + out(attention(norm(x)))                                                           (1)
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.layers.attention import Attention
from jaxgen.models.layers.group_norm import GroupNorm
from jaxgen.typing import Array, Float


class AttentionBlock(nn.Module):
  """Eq. 1; the norm's parameters stand beside those of `Attention`.

  Attributes:
    groups, eps: number of groups of the norm, and its eps.
    heads, fused, qkv_init, out_init, dtype: as in `Attention`.
  """

  groups: int
  eps: float
  heads: int = 1
  fused: bool = True
  qkv_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  out_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  dtype: Any = jnp.float32

  def setup(self) -> None:
    self.norm = GroupNorm(self.groups, self.eps, self.dtype)
    self.attention = Attention(
      self.heads, fused=self.fused, qkv_init=self.qkv_init, out_init=self.out_init, dtype=self.dtype
    )
    nn.share_scope(self, self.attention)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    b, height, width, d = x.shape
    h = self.norm(x).reshape(b, height * width, d)
    return x + self.attention(h).reshape(x.shape)
