"""Qwen3, a language model whose hidden tokens newer text-to-image models read: Z-Image.

  x = token(id)                                                                                  (1)
  x <- x + attention(rms(x));  x <- x + mlp(rms(x))      `depth` times, causal                    (2)
  attention: queries and keys are normed by head and turned by their places, k theta^(-2 i / h); one head of keys and
    values serves heads / kv_heads queries                                                       (3)
  mlp(h) = down(silu(gate(h)) in(h));   y = rms(x)                                               (4)

Nothing has a bias. Yang et al. 2025, "Qwen3 Technical Report". Z-Image reads x before the last block, un-normed.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen.models.layers.attention import attention
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.rope import rotate
from jaxgen.models.layers.stack import stack
from jaxgen.sharding import Rule
from jaxgen.typing import Array, Float, Int

_normal = nn.initializers.normal(0.02)

# The rest of a block goes by the names of layers/stack.py and z_image.py.
RULES: tuple[Rule, ...] = (
  (r'(^|/)blocks/(query|key|value)/kernel$', (None, None, ('tensor', 'fsdp'), None)),
  (r'(^|/)blocks/(query|key|value)/kernel$', (None, 'fsdp', 'tensor', None)),
)


class Qwen3(nn.Module):
  """The network without its head, `(ids) -> tokens`.

  Attributes:
    width, hidden: features of a token, and within the MLP.
    depth, heads, kv_heads, head_size: number of blocks, of heads of queries and of keys, features of a head.
    vocabulary: number of tokens.
    theta: base of the angles of Eq. 3.
    eps: added to the mean squares of the norms.
    dtype: dtype of activations; parameters, statistics of norms and softmax are float32.
  """

  width: int
  hidden: int
  depth: int
  heads: int
  kv_heads: int
  head_size: int = 128
  vocabulary: int = 151936
  theta: float = 1e6
  eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: Int[Array, 'b k'], *, skip: int = 0) -> Float[Array, 'b k d']:
    """Encodes text, whose padding is behind it, so that no token sees it.

    Args:
      ids: ids of tokens.
      skip: last blocks that are left out, and with them the last norm; 0 for all of Eq. 4.
    """
    tokens = ids.shape[1]
    x = nn.Embed(self.vocabulary, self.width, embedding_init=_normal, name='token_embed')(ids).astype(self.dtype)
    frequencies = self.theta ** (-np.arange(0, self.head_size, 2) / self.head_size)
    angles = jnp.asarray(np.float32(np.arange(tokens)[:, None] * frequencies[None]))
    causal = jnp.tril(jnp.ones((tokens, tokens), bool))[None]
    block = partial(Block, self.heads, self.kv_heads, self.head_size, self.hidden, self.eps, self.dtype)
    stop = self.depth - skip
    x = stack(self, block, x, angles, causal, depth=self.depth, stop=stop)
    norm = _rms(self.eps, self.dtype, 'norm_out')
    return norm(x) if skip == 0 or self.is_initializing() else x


class Block(nn.Module):
  """Eq. 2."""

  heads: int
  kv_heads: int
  head_size: int
  hidden: int
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d'], angles: Float[Array, 'l r'], mask: Array) -> Float[Array, 'b l d']:
    d = x.shape[-1]
    h = _rms(self.eps, self.dtype, 'norm1')(x)
    q, k, v = (
      self._linear((number, self.head_size), name)(h)
      for name, number in (('query', self.heads), ('key', self.kv_heads), ('value', self.kv_heads))
    )
    q, k = (rotate(_rms(self.eps, self.dtype, f'{name}_norm')(a), angles) for name, a in (('q', q), ('k', k)))
    k, v = (jnp.repeat(a, self.heads // self.kv_heads, axis=2) for a in (k, v))  # Eq. 3
    h = attention(q, k, v, mask=mask).astype(self.dtype)
    x = x + Linear(d, 2, use_bias=False, kernel_init=_normal, dtype=self.dtype, name='out')(h)
    h = _rms(self.eps, self.dtype, 'norm2')(x)
    h = nn.silu(self._linear((self.hidden,), 'gate')(h)) * self._linear((self.hidden,), 'in')(h)
    return x + self._linear((d,), 'down')(h)  # Eq. 4

  def _linear(self, features: tuple[int, ...], name: str) -> Linear:
    return Linear(features, use_bias=False, kernel_init=_normal, dtype=self.dtype, name=name)


def qwen3_4b(*, dtype: Any = jnp.float32) -> Qwen3:
  """The encoder of Z-Image: 4,022,468,096 parameters."""
  return Qwen3(width=2560, hidden=9728, depth=36, heads=32, kv_heads=8, dtype=dtype)


def _rms(eps: float, dtype: Any, name: str) -> nn.RMSNorm:
  return nn.RMSNorm(epsilon=eps, dtype=dtype, name=name)  # its statistics are float32
