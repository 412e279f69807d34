"""The encoder of T5 v1.1, which text-to-image models read captions with.

  x = token(id), neither scaled nor given positions                                                     (1)
  x <- x + attention(rms(x)); x <- x + mlp(rms(x))      `depth` times                                    (2)
  attention: softmax(q k^T + r(j - i) + mask) v, logits not scaled, r a number a bucket and head,
    the same in all blocks                                                                              (3)
  mlp(h) = out(gelu(gate(h)) in(h)), gelu's tanh form                                                   (4)
  y = rms(x),  rms(x) = g x / sqrt(mean x^2 + 1e-6)                                                     (5)

Buckets of j - i: half for what comes before and 0, half for what comes after; in each, half are of one distance, the
others grow by a constant factor up to `max_distance`. Nothing has a bias. Raffel et al. 2020, "Exploring the Limits of
Transfer Learning with a Unified Text-to-Text Transformer"; Shazeer 2020, "GLU Variants Improve Transformer".

Activations may be bfloat16; the residual x, norms and softmax are float32 always. float16 overflows in Eq. 4's `out`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen.models.layers.attention import Attention
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.stack import TRANSFORMER_RULES, stack
from jaxgen.typing import Array, Bool, Float, Int

VOCABULARY = 32128
_EPS = 1e-6
_normal = nn.initializers.normal

# (width, hidden, depth, heads) of the published encoders; heads have 64 features each.
SIZES = {
  'small': (512, 1024, 8, 6),
  'base': (768, 2048, 12, 12),
  'large': (1024, 2816, 24, 16),
  'xl': (2048, 5120, 24, 32),
  'xxl': (4096, 10240, 24, 64),
}
RULES = TRANSFORMER_RULES


class T5Encoder(nn.Module):
  """The network, `(ids, mask) -> tokens`.

  Attributes:
    width, hidden: features of a token, and within the MLP.
    depth, heads, head_size: number of blocks, attention heads, features of a head; heads * head_size need not be width.
    vocabulary: number of tokens.
    buckets, max_distance: number of buckets and largest distance of the relative positions.
    dtype: dtype of activations, but for the residual, norms and softmax, which are float32, as are the parameters.
  """

  width: int
  hidden: int
  depth: int
  heads: int
  head_size: int = 64
  vocabulary: int = VOCABULARY
  buckets: int = 32
  max_distance: int = 128
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: Int[Array, 'b k'], mask: Bool[Array, 'b k'] | None = None) -> Float[Array, 'b k d']:
    """Encodes text.

    Args:
      ids: ids of tokens; 1 ends a text, 0 pads it.
      mask: tokens that are attended to. PixArt and DeepFloyd pass it; Stable Diffusion 3 and Flux do not.
    """
    if jnp.dtype(self.dtype) == jnp.float16:
      raise ValueError('T5 overflows in float16; use bfloat16 or float32')
    tokens = ids.shape[1]
    x = nn.Embed(self.vocabulary, self.width, embedding_init=_normal(1.0), name='token_embed')(ids)
    table = self.param('relative_bias', _normal(self.width**-0.5), (self.buckets, self.heads), jnp.float32)
    bias = jnp.asarray(table, jnp.float32)[relative_buckets(tokens, self.buckets, self.max_distance)]  # l k n
    allowed = None if mask is None else mask.astype(bool)
    block = partial(Block, self.heads, self.head_size, self.hidden, self.dtype)
    x = stack(self, block, x.astype(jnp.float32), bias.transpose(2, 0, 1)[None], allowed, depth=self.depth)
    return _norm(jnp.float32, 'norm_out')(x).astype(self.dtype)  # Eq. 5


class Block(nn.Module):
  """Eq. 2."""

  heads: int
  head_size: int
  hidden: int
  dtype: Any

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b l d'], bias: Float[Array, '1 n l l'], mask: Bool[Array, 'b l'] | None
  ) -> Float[Array, 'b l d']:
    out = _normal((self.heads * self.head_size) ** -0.5)
    attention = Attention(
      self.heads, self.head_size, scale=1.0, qkv_bias=False, out_bias=False, qkv_init=_qkv_init(self.head_size),
      out_init=out, dtype=self.dtype, name='attention',
    )  # fmt: skip
    x = x + attention(_norm(self.dtype, 'norm1')(x), mask=mask, bias=bias).astype(jnp.float32)
    x = x + Mlp(self.hidden, self.dtype, name='mlp')(_norm(self.dtype, 'norm2')(x)).astype(jnp.float32)
    return x


class Mlp(nn.Module):
  """Eq. 4."""

  hidden: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d']) -> Float[Array, 'b l d']:
    d = x.shape[-1]
    gate, h = (
      Linear(self.hidden, use_bias=False, kernel_init=_normal(d**-0.5), dtype=self.dtype, name=name)(x)
      for name in ('gate', 'in')
    )
    init = _normal(self.hidden**-0.5)
    h = nn.gelu(gate) * h
    return Linear(d, use_bias=False, kernel_init=init, dtype=self.dtype, name='out')(h)


def t5_encoder(size: str, *, dtype: Any = jnp.float32) -> T5Encoder:
  """A published encoder by name: small, base, large, xl or xxl."""
  if size not in SIZES:
    raise ValueError(f'T5 v1.1 has no size {size!r}; wanted one of {", ".join(SIZES)}')
  width, hidden, depth, heads = SIZES[size]
  return T5Encoder(width, hidden, depth, heads, dtype=dtype)


def relative_buckets(tokens: int, buckets: int, max_distance: int) -> np.ndarray:
  """The bucket of Eq. 3 for each query i and key j, int32 [tokens, tokens]."""
  offset = np.arange(tokens)[None] - np.arange(tokens)[:, None]  # j - i
  half, distance = buckets // 2, np.abs(offset)
  exact = half // 2
  growth = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.log(max_distance / exact)
  far = np.minimum(exact + (growth * (half - exact)).astype(np.int32), half - 1)
  return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far).astype(np.int32)


def _qkv_init(head_size: int) -> nn.initializers.Initializer:
  """Normal of 1 / sqrt(inputs); queries are smaller by sqrt(head size), since logits are not scaled."""

  def init(key: Array, shape: Sequence[int], dtype: Any) -> Array:
    kernel = _normal(shape[0] ** -0.5)(key, shape, dtype)
    queries = jnp.arange(shape[1]) < shape[1] // 3
    return kernel * jnp.where(queries, head_size**-0.5, 1.0)[None]

  return init


def _norm(dtype: Any, name: str) -> nn.RMSNorm:
  return nn.RMSNorm(epsilon=_EPS, dtype=dtype, name=name)  # its statistics are float32
