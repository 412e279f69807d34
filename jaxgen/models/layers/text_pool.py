"""A text's tokens pooled to one vector by attention, as DeepFloyd IF adds to time's embedding:

  h = norm(text);   c = mean(h) + p;   vector = norm(proj(attention(c; [c, h])))                 (1)

Differs from models that mask padding: every token counts, which is how IF was trained.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.layers.attention import attention
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Float


class TextPool(nn.Module):
  """Eq. 1.

  Attributes:
    features: width of the vector.
    heads: attention heads.
    dtype: dtype of the activations.
  """

  features: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text: Float[Array, 'b k e']) -> Float[Array, 'b d']:
    norm = {'epsilon': 1e-5, 'dtype': self.dtype, 'use_fast_variance': False}
    h = nn.LayerNorm(**norm, name='norm_in')(text.astype(self.dtype))
    query = self.param('query_row', nn.initializers.normal(text.shape[-1] ** -0.5), (text.shape[-1],), jnp.float32)
    c = h.mean(1, keepdims=True) + query.astype(self.dtype)[None, None]
    heads = (self.heads, text.shape[-1] // self.heads)
    tokens = jnp.concatenate([c, h], axis=1)
    of = {'query': c, 'key': tokens, 'value': tokens}
    q, k, v = (Linear(heads, dtype=self.dtype, name=name)(rows) for name, rows in of.items())
    pooled = attention(q, k, v).reshape(len(text), -1)  # b (n h)
    return nn.LayerNorm(**norm, name='norm_out')(Linear(self.features, dtype=self.dtype, name='proj')(pooled))
