"""A transformer over the pixels of a U-Net's level that reads a sequence of tokens, such as a text's.

  h = in(norm(x))                                                     (1)
  h <- h + self(norm(h)); h <- h + cross(norm(h), text)               (2)    `depth` times, each with
  h <- h + mlp(norm(h)),  mlp(h) = out(a gelu(b)), (a, b) = in(h)     (3)    Shazeer 2020, "GLU Variants"
  y = x + out(h)                                                      (4)    starts at zero

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models".
"""

from typing import Any

import flax.linen as nn

from jaxgen.models.layers.attention import attention
from jaxgen.models.layers.group_norm import GroupNorm
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Float

_MLP_RATIO = 4
_zeros = nn.initializers.zeros_init()


class Transformer(nn.Module):
  """Eqs. 1 to 4, on images."""

  heads: int
  depth: int
  groups: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], text: Float[Array, 'b k e']) -> Float[Array, 'b h w c']:
    b, height, width, d = x.shape
    h = GroupNorm(self.groups, dtype=self.dtype, name='norm')(x)
    h = Linear(d, dtype=self.dtype, name='in')(h.reshape(b, height * width, d))  # Eq. 1
    for i in range(self.depth):
      h = Block(self.heads, self.dtype, name=f'block_{i}')(h, text.astype(self.dtype))
    h = Linear(d, dtype=self.dtype, kernel_init=_zeros, name='out')(h)
    return x + h.reshape(x.shape)  # Eq. 4


class Block(nn.Module):
  """Eqs. 2 and 3."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d'], text: Float[Array, 'b k e']) -> Float[Array, 'b l d']:
    h = self._norm('norm_self')(x)
    x = x + Attention(self.heads, self.dtype, name='self')(h, h)
    x = x + Attention(self.heads, self.dtype, name='cross')(self._norm('norm_cross')(x), text)
    d = x.shape[-1]
    h = Linear((2, _MLP_RATIO * d), dtype=self.dtype, name='mlp_in')(self._norm('norm_mlp')(x))  # b l 2 4d
    h = h[:, :, 0] * nn.gelu(h[:, :, 1], approximate=False)
    return x + Linear(d, dtype=self.dtype, name='mlp_out')(h)

  def _norm(self, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=name)


class Attention(nn.Module):
  """From the tokens of `x` to those of `to`; queries, keys and values have no biases."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d'], to: Float[Array, 'b k e']) -> Float[Array, 'b l d']:
    d = x.shape[-1]
    q, k, v = (
      nn.DenseGeneral((self.heads, d // self.heads), use_bias=False, dtype=self.dtype, name=name)(tokens)
      for name, tokens in (('query', x), ('key', to), ('value', to))
    )
    return Linear(d, inputs=2, dtype=self.dtype, name='out')(attention(q, k, v))
