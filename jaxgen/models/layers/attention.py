"""Attention: one function that picks the platform's kernel, and one module that every network uses.

  attention(q, k, v) = softmax(s q k^T + bias) v,   s = 1 / sqrt(h)     (1)    Vaswani et al. 2017, per head of size h
  attention(q, [k, k'], [v, v'])                                        (2)    joined: Esser et al. 2024; DeepFloyd IF
  attention(q, k, v) + w attention(q, k', v')                           (3)    decoupled: Ye et al. 2023, "IP-Adapter"

The softmax is float32 whatever the inputs are. Models call `attention` and know neither platform nor mesh: both are
those of the mesh that the computation is traced for (`sharding.under`), so a program that is compiled on one machine
for another has the other's kernel. A fused kernel runs on each device's own images and heads; with an axis `sequence`
also on its own queries, against all keys (context parallelism).
"""

import contextlib
import contextvars
import enum
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging

from jaxgen import sharding
from jaxgen.models.layers.attention_edit import Edit, Edits, edited, edited_joint
from jaxgen.models.layers.blocked import blocked_attention
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.rope import Angles, rotate
from jaxgen.typing import Array, Bool, Float, MakeModule

Mask = Bool[Array, '#b k'] | Bool[Array, '#b #l k']  # True where a query may attend to a key
Bias = Float[Array, '#b #n #l #k']
_NO_EDITS = Edits()


@runtime_checkable
class Kernel(Protocol):
  """Computes Eq. 1 on one platform."""

  __name__: str

  def __call__(
    self,
    q: Float[Array, 'b l n h'],
    k: Float[Array, 'b k n h'],
    v: Float[Array, 'b k n h'],
    mask: Mask | None = None,
    bias: Bias | None = None,
    *,
    scale: float | None = None,
  ) -> Float[Array, 'b l n h']: ...


class Choice(enum.Enum):
  """What attention may run as."""

  FUSED = 1  # the platform's kernel
  PLAIN = 2  # XLA's
  FORWARD = 3  # XLA's, or that of layers/blocked.py where there are many tokens


_choice = contextvars.ContextVar('choice', default=Choice.FUSED)
_MANY = 1024  # from this many keys on, a forward derivative does not keep the weights of all tokens


class KeysValues(NamedTuple):
  """Keys and values in heads; already projected, normalised and rotated."""

  keys: Float[Array, 'b k n h']
  values: Float[Array, 'b k n h']


class Decoupled(NamedTuple):
  """Keys and values with a softmax of their own, Eq. 3.

  Attributes:
    keys, values: keys and values, split into heads.
    scale: w.
    mask: as in `attention`.
  """

  keys: Float[Array, 'b k n h']
  values: Float[Array, 'b k n h']
  scale: Float[Array, ''] | Float[Array, 'b 1 1 1'] | float = 1.0
  mask: Mask | None = None


class Attention(nn.Module):
  """Self-attention, or attention from `x` to `context`.

  The heads are an axis of the parameters, so they can be sharded. The parameters are `qkv` or `query`, `key` and
  `value`, then `out`; with `qk_norm` also `q_norm` and `k_norm`.

  Attributes:
    heads: number of heads.
    head_size: size of a head; None for the width of `x` divided by `heads`.
    features: width of the output; None for the width of `x`.
    fused: one product makes queries, keys and values; for self-attention alone.
    qkv_bias, out_bias: whether the products have biases.
    qk_norm: makes the norm of queries and that of keys, over each head, such as `nn.RMSNorm`; None for none.
    scale: s of Eq. 1; None for 1 / sqrt(head size).
    qkv_init, out_init: initialise the kernels, each seen as a matrix.
    dtype: dtype of the products; parameters and softmax are float32.
  """

  heads: int
  head_size: int | None = None
  features: int | None = None
  fused: bool = True
  qkv_bias: bool = True
  out_bias: bool = True
  qk_norm: MakeModule | None = None
  scale: float | None = None
  qkv_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  out_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b l d'],
    context: Float[Array, 'b m e'] | None = None,
    *,
    angles: Angles | None = None,
    mask: Mask | None = None,
    bias: Bias | None = None,
    joined: KeysValues | None = None,
    decoupled: Sequence[Decoupled] = (),
    edit: Edit | None = None,
  ) -> Float[Array, 'b l o']:
    """Attends.

    Args:
      x: tokens of the queries.
      context: tokens that are attended to; None for `x`.
      angles: rotary angles of the tokens, for self-attention (layers/rope.py).
      mask: True where a query may attend to a key; the keys are the context's, then those of `joined`. Each query needs
        one key.
      bias: added to the logits.
      joined: further keys and values in the same softmax, Eq. 2.
      decoupled: further keys and values, each in a softmax of its own, Eq. 3.
      edit: changes the weights (layers/attention_edit.py).

    The weights `b n l k` leave in the collection 'maps', if it is mutable. They and an edit need them all in memory at
    once: no fused kernel makes them.
    """
    q, k, v = self._project(x, context)
    if self.qk_norm is not None:
      q, k = (self.qk_norm(dtype=self.dtype, name=f'{name}_norm')(array) for name, array in (('q', q), ('k', k)))
    if angles is not None:
      q, k = rotate(q, angles), rotate(k, angles)
    if joined is not None:
      k, v = (jnp.concatenate(pair, axis=1) for pair in ((k, joined.keys), (v, joined.values)))
    sown = self.is_mutable_collection('maps') and not self.is_initializing()
    if sown or edit is not None:
      weights = attention_weights(q, k, mask, bias, scale=self.scale)
      weights = weights if edit is None else edited(weights, edit)
      self.sow('maps', 'weights', weights)
      h = _mix(weights, v)
    else:
      h = attention(q, k, v, mask=mask, bias=bias, scale=self.scale)  # b l n h
    for other in decoupled:
      h += other.scale * attention(q, other.keys, other.values, mask=other.mask, scale=self.scale)
    features = self.features or x.shape[-1]
    out = Linear(features, 2, use_bias=self.out_bias, dtype=self.dtype, kernel_init=self.out_init, name='out')
    return out(h.astype(self.dtype))

  def _project(self, x: Array, context: Array | None) -> Sequence[Float[Array, 'b _ n h']]:
    """Queries, keys and values."""
    d = x.shape[-1]
    if self.heads < 1 or (self.head_size is None and d % self.heads):
      raise ValueError(f'width {d} does not divide into {self.heads} heads')
    heads = (self.heads, self.head_size or d // self.heads)

    def linear(features: tuple[int, ...], name: str) -> Linear:
      return Linear(features, use_bias=self.qkv_bias, dtype=self.dtype, kernel_init=self.qkv_init, name=name)

    if not self.fused:
      tokens = x if context is None else context
      return linear(heads, 'query')(x), linear(heads, 'key')(tokens), linear(heads, 'value')(tokens)
    if context is not None:
      raise ValueError('attention to a context has no fused product; use Attention(..., fused=False)')
    qkv = linear((3, *heads), 'qkv')(x)  # b l 3 n h
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def attention(
  q: Float[Array, 'b l n h'],
  k: Float[Array, 'b k n h'],
  v: Float[Array, 'b k n h'],
  *,
  mask: Mask | None = None,
  bias: Bias | None = None,
  scale: float | None = None,
) -> Float[Array, 'b l n h']:
  """Attends from every query to every key that the mask allows; see Eq. 1."""
  local = sharding.attention_shard(q.shape)
  task = _Task(
    str(q.dtype), local or q.shape, k.shape[1], local is not None, None if mask is None else mask.ndim, bias is not None
  )
  kernel = _kernel(sharding.platform(), task, _choice.get())
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  # The partitioner shards XLA's by images and heads, but needs a constraint on queries.
  if local is None or (kernel in (xla_attention, blocked_attention) and local[1] == q.shape[1]):
    return kernel(q, k, v, mask, bias, scale=scale)
  return sharding.attend_on_shards(functools.partial(kernel, scale=scale), q, k, v, mask, bias)


def joint_attention(
  module: nn.Module,
  q: Float[Array, 'b m n h'],
  k: Float[Array, 'b m n h'],
  v: Float[Array, 'b m n h'],
  *,
  tokens: int,
  mask: Mask | None = None,
  edits: Edits = _NO_EDITS,
) -> Float[Array, 'b m n h']:
  """Eq. 2 over the text's `tokens` and then the image's, of `module`.

  The image's weights of the text `b n l k` leave in the collection 'maps' as 'cross', if it is mutable.
  """
  sown = module.is_mutable_collection('maps') and not module.is_initializing()
  if not sown and edits == _NO_EDITS:
    return attention(q, k, v, mask=mask)
  weights = edited_joint(attention_weights(q, k, mask), edits, tokens=tokens)
  module.sow('maps', 'cross', weights[:, :, tokens:, :tokens])
  return _mix(weights, v)


def attention_weights(
  q: Array, k: Array, mask: Array | None = None, bias: Array | None = None, *, scale: float | None = None
) -> Float[Array, 'b n l k']:
  """The softmax of Eq. 1, float32."""
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  logits = jnp.einsum('blnh,bknh->bnlk', q * scale, k, preferred_element_type=jnp.float32)
  if bias is not None:
    logits += bias.astype(jnp.float32)
  if mask is not None:
    logits = jnp.where(_over_heads(mask), logits, jnp.finfo(jnp.float32).min)
  return jax.nn.softmax(logits)


def xla_attention(
  q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None, *, scale: float | None = None
) -> Array:
  """Eq. 1 as two einsums, used where no fused kernel is."""
  return _mix(attention_weights(q, k, mask, bias, scale=scale), v)


def cudnn_attention(
  q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None, *, scale: float | None = None
) -> Array:
  """Eq. 1 in one cuDNN kernel."""
  mask = None if mask is None else _over_heads(mask)
  bias = None if bias is None else bias.astype(q.dtype)
  return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale, implementation='cudnn')


def splash_attention(
  q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None, *, scale: float | None = None
) -> Array:
  """Eq. 1 in one Pallas kernel for TPUs; the mask is of keys, and there is no bias."""
  from jaxgen.models.layers import splash

  assert bias is None, bias.shape
  return splash.splash_attention(q, k, v, mask, scale=scale)


def _mix(weights: Float[Array, 'b n l k'], v: Float[Array, 'b k n h']) -> Float[Array, 'b l n h']:
  return jnp.einsum('bnlk,bknh->blnh', weights.astype(v.dtype), v)


def _over_heads(mask: Array) -> Bool[Array, '_ 1 _ k']:
  return mask[:, None, None] if mask.ndim == 2 else mask[:, None]


@contextlib.contextmanager
def chosen(choice: Choice) -> Iterator[None]:
  """Attention that is traced within runs as `choice` says."""
  token = _choice.set(choice)
  try:
    yield
  finally:
    _choice.reset(token)


def unfused() -> contextlib.AbstractContextManager[None]:
  """Attention that is traced within is XLA's: fused kernels have a gradient, but no forward or second derivative."""
  return chosen(Choice.PLAIN)


def with_forward_derivative() -> contextlib.AbstractContextManager[None]:
  """Attention that is traced within has a forward derivative, in memory that is linear in the tokens where they are
  many."""
  return chosen(Choice.FORWARD)


class _Task(NamedTuple):
  """The work of a kernel on one device.

  Attributes:
    dtype: dtype of queries, keys and values.
    queries: their shape, `b l n h`.
    keys: number of them.
    on_shards: whether this is the device's own part of a larger array.
    mask: None, 2 for a mask of keys, 3 for one of queries and keys.
    biased: whether something is added to the logits.
  """

  dtype: str
  queries: tuple[int, ...]
  keys: int
  on_shards: bool
  mask: int | None = None
  biased: bool = False


@functools.cache  # so that each choice is logged once
def _kernel(platform: str, task: _Task, choice: Choice) -> Kernel:
  """The kernel for the task.

  cuDNN's takes half precision and head sizes that are multiples of 8 up to 128; with a mask or a bias, which it adds as
  one, its gradient wants even numbers of tokens. A Pallas kernel is opaque to the partitioner: it runs on a device's
  own part, or there is only one device; tokens fill its blocks, and its mask is of keys.
  """
  tokens, head_size = task.queries[1], task.queries[3]
  plain = task.mask is None and not task.biased
  even = tokens % 2 == 0 and task.keys % 2 == 0
  blocks = tokens % 128 == 0 and task.keys % 128 == 0
  kernel = xla_attention
  if choice is Choice.FORWARD and task.keys >= _MANY and task.mask != 3 and not task.biased:
    kernel = blocked_attention
  elif choice is not Choice.FUSED:
    pass
  elif platform in ('gpu', 'cuda') and jnp.finfo(task.dtype).bits == 16:
    kernel = cudnn_attention if head_size % 8 == 0 and head_size <= 128 and (plain or even) else kernel
  elif platform == 'tpu' and task.on_shards:
    kernel = splash_attention if blocks and task.mask != 3 and not task.biased else kernel
  logging.info(
    'attention on %s, %s, %d queries on %d keys, heads of %d%s%s: %s',
    platform, task.dtype, tokens, task.keys, head_size,
    {None: '', 2: ', masked keys', 3: ', masked pairs'}[task.mask], ', biased' * task.biased, kernel.__name__,
  )  # fmt: skip
  return kernel
