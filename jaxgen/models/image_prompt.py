"""From an image's features to tokens that a U-Net attends to beside its text: IP-Adapter's projections.

  tokens = norm(split(W e + b))                                      (1)    basic: e, the image's CLIP embedding
  x <- x + attend(norm2(x), [norm1(f), norm2(x)]);  x <- x + mlp(x)  (2)    plus: x learned queries, f the patches

Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models".
Eq. 2's attention is that of Alayrac et al. 2022, "Flamingo": the queries are among the keys.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.attention import attention
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Float


class ImageProjection(nn.Module):
  """Eq. 1.

  Attributes:
    tokens: number of tokens.
    width: features of a token, as of the text's.
    dtype: dtype of the product.
  """

  tokens: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, embedding: Float[Array, 'b e']) -> Float[Array, 'b m d']:
    h = Linear(self.tokens * self.width, dtype=self.dtype, name='proj')(embedding)
    return _norm(self.dtype, 'norm')(h.reshape(-1, self.tokens, self.width))


class Resampler(nn.Module):
  """Eq. 2, `depth` times, between two linear layers.

  Attributes:
    queries: number of tokens.
    features: features of a token, as of the text's.
    width, depth, heads: features within, number of layers, attention heads.
    head_size: size of a head.
    dtype: dtype of the products.
  """

  queries: int
  features: int
  width: int
  depth: int
  heads: int
  head_size: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: Float[Array, 'b l e']) -> Float[Array, 'b m d']:
    init = nn.initializers.normal(self.width**-0.5)
    latents = self.param('latents', init, (self.queries, self.width), jnp.float32)
    x = jnp.broadcast_to(latents.astype(self.dtype)[None], (len(features), *latents.shape))
    f = Linear(self.width, dtype=self.dtype, name='in')(features.astype(self.dtype))
    for i in range(self.depth):
      x = x + self._attend(x, f, f'layer_{i}')
      h = Linear(4 * self.width, use_bias=False, dtype=self.dtype, name=f'layer_{i}_mlp_in')(
        _norm(self.dtype, f'layer_{i}_norm_mlp')(x)
      )
      h = jax.nn.gelu(h, approximate=False)
      x = x + Linear(self.width, use_bias=False, dtype=self.dtype, name=f'layer_{i}_mlp_out')(h)
    return _norm(self.dtype, 'norm_out')(Linear(self.features, dtype=self.dtype, name='out')(x))

  def _attend(self, x: Float[Array, 'b m d'], f: Float[Array, 'b l d'], name: str) -> Float[Array, 'b m d']:
    f, x = _norm(self.dtype, f'{name}_norm1')(f), _norm(self.dtype, f'{name}_norm2')(x)
    heads = (self.heads, self.head_size)
    q = Linear(heads, use_bias=False, dtype=self.dtype, name=f'{name}_query')(x)
    kv = Linear((2, *heads), use_bias=False, dtype=self.dtype, name=f'{name}_key_value')(jnp.concatenate([f, x], 1))
    h = attention(q, kv[:, :, 0], kv[:, :, 1])
    return Linear(self.width, 2, use_bias=False, dtype=self.dtype, name=f'{name}_out')(h)


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)
