"""How DALL-E 2's decoder reads the embedding e of an image, beside the text:

  vector = e A + pooled B + b                      added to time's embedding                     (1)
  text <- [e_1 ... e_n, norm(text C)]              e_i = e D_i, further tokens                   (2)

Without an embedding there is a learned one, `null`. Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation
with CLIP Latents" (unCLIP), section 2.1.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Float


class EmbeddingProjection(nn.Module):
  """Eqs. 1 and 2: `(embedding, pooled, text) -> {'vector', 'text'}`, conditions of a U-Net.

  Attributes:
    width: width of a token of text as the U-Net reads it.
    time: width of the U-Net's embedding of time.
    tokens: n of Eq. 2.
    dtype: dtype of the tokens.
  """

  width: int
  time: int
  tokens: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, embedding: Float[Array, 'b d'], pooled: Float[Array, 'b e'], text: Float[Array, 'b k f']
  ) -> dict[str, Array]:
    self.param('null', nn.initializers.normal(1.0), (embedding.shape[-1],), jnp.float32)
    embedding = embedding.astype(jnp.float32)
    vector = Linear(self.time, name='embedding_time')(embedding)
    vector += Linear(self.time, name='pooled_time')(pooled.astype(jnp.float32))  # Eq. 1
    more = Linear((self.tokens, self.width), dtype=self.dtype, name='tokens')(embedding.astype(self.dtype))
    text = Linear(self.width, dtype=self.dtype, name='text_embed')(text.astype(self.dtype))
    norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name='text_norm')
    return {'vector': vector, 'text': jnp.concatenate([more, norm(text)], axis=1)}  # Eq. 2
