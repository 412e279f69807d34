"""A residual block of self-attention over the pixels of an image, as U-Nets and autoencoders have it.

y = x + out(attention(norm(x)))                                                           (1)

or of attention to the pixels and to the tokens of a text in one softmax (Nichol et al. 2021, "GLIDE").
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.layers.attention import Attention, KeysValues
from jaxgen.models.layers.group_norm import GroupNorm
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Bool, Float

_TEXT_GROUPS = 32


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


class TextAttentionBlock(nn.Module):
  """Eq. 1, where pixels attend to the tokens of a text too.

  Attributes:
    groups, eps: number of groups of the norms, and their eps.
    heads, dtype: as in `Attention`.
    text_norm: a norm of 32 groups of features, over all tokens of a text, before keys and values (DeepFloyd IF).
    alone: pixels attend to the text alone, not to each other (DeepFloyd IF's upsamplers).
  """

  groups: int
  eps: float
  heads: int
  dtype: Any = jnp.float32
  text_norm: bool = False
  alone: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], text: Float[Array, 'b k e'], *, mask: Bool[Array, 'b k'] | None = None
  ) -> Float[Array, 'b h w c']:
    """`mask` is of the text's tokens, True where there is one."""
    b, height, width, d = x.shape
    text = text.astype(self.dtype)
    if self.text_norm:
      text = GroupNorm(_TEXT_GROUPS, 1e-5, self.dtype, name='text_norm')(text[:, :, None])[:, :, 0]
    h = GroupNorm(self.groups, self.eps, self.dtype, name='norm')(x).reshape(b, height * width, d)
    init, fused = nn.initializers.zeros_init(), not self.alone
    attend = Attention(self.heads, fused=fused, out_init=init, dtype=self.dtype, name='attention')
    if self.alone:
      return x + attend(h, text, mask=None if mask is None else mask.astype(bool)).reshape(x.shape)
    heads = (self.heads, d // self.heads)
    keys, values = (Linear(heads, dtype=self.dtype, name=f'text_{name}')(text) for name in ('key', 'value'))
    if mask is not None:
      mask = jnp.concatenate([jnp.ones((b, height * width), bool), mask.astype(bool)], axis=1)
    return x + attend(h, mask=mask, joined=KeysValues(keys, values)).reshape(x.shape)
