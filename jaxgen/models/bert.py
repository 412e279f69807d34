"""BERT, an encoder of text whose tokens see each other both ways; MiniLM is a small one that embeds sentences.

  x = norm(token(id) + position + segment)                                                (1)
  x <- norm(x + attention(x)); x <- norm(x + mlp(x))      `depth` times                     (2)
  pooled = tanh(W x_0 + b)                                                                (3)
  sentence = mean of x over the tokens of the text, then of length 1                      (4)

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers"; Eq. 4: Reimers and Gurevych 2019,
"Sentence-BERT"; Wang et al. 2020, "MiniLM".
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.clip import Mlp, exact_gelu, unit
from jaxgen.models.layers.attention import Attention
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.stack import TRANSFORMER_RULES, stack
from jaxgen.typing import Array, Bool, Float, Int

_EPS = 1e-12
_normal = nn.initializers.normal(0.02)
RULES = TRANSFORMER_RULES


class Encoded(NamedTuple):
  """Attributes:
  last: tokens of the last block.
  pooled: Eq. 3.
  sentence: Eq. 4, float32.
  """

  last: Float[Array, 'b k d']
  pooled: Float[Array, 'b d']
  sentence: Float[Array, 'b d']


class Bert(nn.Module):
  """The network, `(ids, mask) -> Encoded`.

  Attributes:
    width, hidden: features of a token, and within the MLP.
    depth, heads: number of blocks, attention heads.
    vocabulary, context, segments: numbers of tokens in the table, of positions, of kinds of tokens.
    eps: eps of the norms.
    dtype: dtype of activations; parameters are float32.
  """

  width: int
  hidden: int
  depth: int
  heads: int
  vocabulary: int = 30522
  context: int = 512
  segments: int = 2
  eps: float = _EPS
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    ids: Int[Array, 'b k'],
    mask: Bool[Array, 'b k'] | None = None,
    *,
    segments: Int[Array, 'b k'] | None = None,
  ) -> Encoded:
    """Encodes text; `mask` has the tokens that are attended to, `segments` their kinds, 0 by default."""
    tokens = ids.shape[1]
    if tokens > self.context:
      raise ValueError(f'{tokens} tokens are more than the {self.context} of this BERT; truncate them')
    mask = jnp.ones_like(ids, bool) if mask is None else mask.astype(bool)
    x = nn.Embed(self.vocabulary, self.width, embedding_init=_normal, name='token_embed')(ids)
    x += self.param('position_embed', _normal, (self.context, self.width), jnp.float32)[None, :tokens]
    kinds = nn.Embed(self.segments, self.width, embedding_init=_normal, name='segment_embed')
    x += kinds(jnp.zeros_like(ids) if segments is None else segments)
    x = _norm(self.eps, self.dtype, 'norm_in')(x)  # Eq. 1
    x = stack(self, partial(Block, self.heads, self.hidden, self.eps, self.dtype), x, mask, depth=self.depth)
    pooled = jnp.tanh(Linear(self.width, dtype=self.dtype, kernel_init=_normal, name='pooler')(x[:, 0]))  # Eq. 3
    weights = mask.astype(jnp.float32)[..., None]
    mean = (x.astype(jnp.float32) * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
    return Encoded(x, pooled, unit(mean))  # Eq. 4


class Block(nn.Module):
  """Eq. 2."""

  heads: int
  hidden: int
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d'], mask: Bool[Array, 'b l']) -> Float[Array, 'b l d']:
    attention = Attention(self.heads, dtype=self.dtype, qkv_init=_normal, out_init=_normal, name='attention')
    x = _norm(self.eps, self.dtype, 'norm1')(x + attention(x, mask=mask))
    mlp = Mlp(self.hidden, exact_gelu, _normal, self.dtype, name='mlp')
    return _norm(self.eps, self.dtype, 'norm2')(x + mlp(x))


def minilm(*, dtype: Any = jnp.float32) -> Bert:
  """MiniLM-L6-H384, the network of sentence-transformers/all-MiniLM-L6-v2."""
  return Bert(384, 1536, 6, 12, dtype=dtype)


def _norm(eps: float, dtype: Any, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)
