"""DALL-E 2's prior: a causal transformer that denoises the embedding of an image, given that of its caption.

  tokens = [text_1 ... text_k, pooled text, time(t), x_t, query] + position                       (1)
  h <- h + attention(norm(h));  h <- h + mlp(norm(h))    each token attends to earlier ones       (2)
  x0 = out(norm(h_query))                                                                         (3)

x is an embedding that was standardised with the mean and the deviation of embeddings (objectives/embedded.py), which
are kept here. Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (unCLIP).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.clip import Block, exact_gelu
from jaxgen.models.layers.embedding import timestep_embedding
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.remat import Policy
from jaxgen.models.layers.stack import TRANSFORMER_RULES, stack
from jaxgen.models.unet import TimeEmbedding
from jaxgen.typing import Array, Bool, Cond, Float

MORE = 4  # tokens of Eq. 1 beside the text
RULES = TRANSFORMER_RULES
_normal = nn.initializers.normal(0.02)


class Prior(nn.Module):
  """The network: `(x, t, cond) -> x0`, both embeddings, as rows `b 1 d`.

  The parameters `mean` and `std` are those of embeddings; no gradient reaches them.

  Attributes:
    depth, width, heads: number of blocks, width of a token, attention heads of size width / heads.
    dtype: dtype of activations; parameters and the output are float32.
    remat: policy of `jax.checkpoint` for each block; None keeps everything.
  """

  depth: int
  width: int
  heads: int
  dtype: Any = jnp.float32
  remat: Policy = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b 1 d'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b 1 d']:
    """Denoises.

    Args:
      x: standardised embeddings with noise.
      t: time as the sinusoid sees it, from 0 to 1000 (`Process.network_time`).
      cond: `text`, float b k e, a fixed number of tokens; `pooled`, float b e, the text's embedding; optional
        `text_mask`, bool b k, True where there is a token.
      train: part of every network's signature; the prior behaves the same.
    """
    b, _, d = x.shape
    k = cond['text'].shape[1]
    self.param('mean', nn.initializers.zeros_init(), (d,), jnp.float32)
    self.param('std', nn.initializers.ones_init(), (d,), jnp.float32)
    time = TimeEmbedding(self.width, name='time_embed')(timestep_embedding(t, self.width)).astype(self.dtype)
    query = self.param('query', _normal, (self.width,), jnp.float32).astype(self.dtype)
    rows = [
      self._linear('text_embed')(cond['text'].astype(self.dtype)),
      self._linear('pooled_embed')(cond['pooled'].astype(self.dtype))[:, None],
      time[:, None],
      self._linear('embed')(x.astype(self.dtype)),
      jnp.broadcast_to(query[None, None], (b, 1, self.width)),
    ]
    positions = self.param('position_embed', _normal, (k + MORE, self.width), jnp.float32)
    h = jnp.concatenate(rows, axis=1) + positions[None].astype(self.dtype)  # Eq. 1
    block = partial(Block, self.heads, 4 * self.width, self.depth, exact_gelu, self.dtype)
    h = stack(self, block, h, self._allowed(cond, b, k), depth=self.depth, remat=self.remat)
    last = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name='norm_out')(h[:, -1:])
    return Linear(d, name='out')(last.astype(jnp.float32))  # Eq. 3

  def _allowed(self, cond: Cond, b: int, k: int) -> Bool[Array, '_ m m']:
    """Each token attends to itself and to earlier ones, and to none that is padding but itself."""
    m = k + MORE
    causal = jnp.tril(jnp.ones((m, m), bool))[None]
    if 'text_mask' not in cond:
      return causal
    there = jnp.concatenate([cond['text_mask'].astype(bool), jnp.ones((b, MORE), bool)], axis=1)
    return causal & (there[:, None] | jnp.eye(m, dtype=bool)[None])

  def _linear(self, name: str) -> Linear:
    return Linear(self.width, dtype=self.dtype, name=name)
