"""A small text encoder that learns with the generator that reads it: for models of one's own captions.

  h = table(ids)                                                     (1)
  h <- h + attention(norm(h))                                        (2)    Eqs. 2 and 3 `depth` times
    logits q k^T / sqrt(size) + r(j - i), r learned for each head, from 0, up to a distance of 16
  h_i <- h_i + mlp(n_{i-1}, n_i, n_{i+1}),  n = norm(h)              (3)
  text = norm(h),  pooled = norm(sum of text over the tokens)        (4)

The neighbours of a word mostly say what it belongs to, 'red hair', so the MLP reads three tokens: a transformer's
MLP of one token takes many times as long to learn which colour goes with which noun. Positions are relative, as in T5
(Raffel et al. 2020), so no text is too long. Padding is zero in Eq. 3, neither attended to nor counted, except at the
first place: an empty text is one token of its own, which networks with cross-attention need. Attention starts at zero.
Vaswani et al. 2017, with the norms before the layers.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen.models.clip import embed
from jaxgen.models.layers.attention import Attention
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Float, Int

_DISTANCE = 16
_zeros = nn.initializers.zeros_init()


class TextEncoder(nn.Module):
  """The network: token ids to the conditions of a text model, `text`, `pooled` and `text_mask`.

  Attributes:
    vocabulary: number of token ids.
    width, depth, heads: width of a token, number of layers, attention heads of size width / heads.
    pad: the id of padding.
    dtype: dtype of activations; parameters and outputs are float32.
  """

  vocabulary: int
  width: int
  depth: int
  heads: int
  pad: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: Int[Array, 'b k'], *, rows: Float[Array, 'r d'] | None = None) -> dict[str, Array]:
    """Encodes.

    Args:
      ids: token ids, padded to one length. Those from `vocabulary` on are `rows`.
      rows: embeddings of new tokens, such as textual inversion learns.

    Returns:
      `text`, float32 b k d; `pooled`, float32 b d; `text_mask`, bool b k, True where there is a token.
    """
    mask = (ids != self.pad).at[:, 0].set(True)
    table = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(1.0), name='table')
    h = embed(table, ids, rows)
    relative = self.param('relative_bias', _zeros, (2 * _DISTANCE + 1, self.heads), jnp.float32)
    places = np.arange(ids.shape[1])
    offsets = np.clip(places[None] - places[:, None], -_DISTANCE, _DISTANCE) + _DISTANCE  # l k
    bias = relative[offsets].transpose(2, 0, 1)[None]  # 1 n l k
    h = h.astype(self.dtype)
    for i in range(self.depth):
      attend = Attention(self.heads, out_init=_zeros, dtype=self.dtype, name=f'attention_{i}')
      h += attend(self._norm(f'attention_norm_{i}')(h), mask=mask, bias=bias)
      three = _with_neighbours(self._norm(f'mlp_norm_{i}')(h) * mask[..., None])
      hidden = nn.gelu(Linear(4 * self.width, dtype=self.dtype, name=f'in_{i}')(three))
      h += Linear(self.width, dtype=self.dtype, name=f'out_{i}')(hidden)
    text = self._norm('norm')(h).astype(jnp.float32)
    weight = mask[..., None].astype(jnp.float32)
    pooled = self._norm('pooled_norm')((text * weight).sum(axis=1)).astype(jnp.float32)
    return {'text': text, 'pooled': pooled, 'text_mask': mask}

  def _norm(self, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name=name)


def _with_neighbours(h: Float[Array, 'b k d']) -> Float[Array, 'b k e']:
  """Each token after the one before it and before the one after it, zero beyond the ends; e is 3 d."""
  padded = jnp.pad(h, ((0, 0), (1, 1), (0, 0)))
  return jnp.concatenate([padded[:, :-2], h, padded[:, 2:]], axis=-1)
