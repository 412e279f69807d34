"""Scaled dot-product attention, through one function that picks the platform's kernel.

  attention(q, k, v) = softmax(q k^T / sqrt(h)) v        (1)    Vaswani et al. 2017, per head of size h

The softmax is float32 whatever the inputs are. Models call `attention` and know neither platform nor mesh: both are
those of the mesh that the computation is traced for (`sharding.under`), so a program that is compiled on one machine
for another has the other's kernel. A fused kernel runs on each device's own images and heads; with an axis `sequence`
also on its own queries, against all keys (context parallelism).
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from jaxgen import sharding
from jaxgen.typing import Array, Float

Kernel = Callable[[Array, Array, Array], Array]
_fused = contextvars.ContextVar('fused', default=True)


def attention(
  q: Float[Array, 'b l n h'], k: Float[Array, 'b k n h'], v: Float[Array, 'b k n h']
) -> Float[Array, 'b l n h']:
  """Attends from every query to every key; see Eq. 1."""
  local = sharding.attention_shard(q.shape)
  kernel = _kernel(_platform(), q.dtype, local or q.shape, k.shape[1], local is not None, _fused.get())
  # The partitioner splits XLA's by images and heads, but has to be told of queries.
  if local is None or (kernel is xla_attention and local[1] == q.shape[1]):
    return kernel(q, k, v)
  return sharding.attend_on_shards(kernel)(q, k, v)


def xla_attention(q: Array, k: Array, v: Array) -> Array:
  """Eq. 1 as two einsums: what runs where no fused kernel does."""
  logits = jnp.einsum('blnh,bknh->bnlk', q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(logits).astype(v.dtype)  # b n l k
  return jnp.einsum('bnlk,bknh->blnh', weights, v)


def cudnn_attention(q: Array, k: Array, v: Array) -> Array:
  """Eq. 1 in one cuDNN kernel."""
  return jax.nn.dot_product_attention(q, k, v, implementation='cudnn')


def splash_attention(q: Array, k: Array, v: Array) -> Array:
  """Eq. 1 in one Pallas kernel for TPUs."""
  from jaxgen.models.layers import splash

  return splash.splash_attention(q, k, v)


@contextlib.contextmanager
def unfused() -> Iterator[None]:
  """Attention that is traced within is XLA's: fused kernels have a gradient, but no forward or second derivative."""
  token = _fused.set(False)
  try:
    yield
  finally:
    _fused.reset(token)


def _platform() -> str:
  """Where the computation goes: the platform of the mesh in sight, else that of the default device."""
  platform = sharding.platform()
  if platform is not None:
    return platform
  device: Any = jax.config.jax_default_device  # pyrefly: ignore[missing-attribute]
  if device is None:
    return jax.default_backend()
  return device if isinstance(device, str) else device.platform


@functools.cache  # so that each choice is logged once
def _kernel(
  platform: str, dtype: jnp.dtype, queries: tuple[int, ...], keys: int, on_shards: bool, fused: bool
) -> Kernel:
  """The kernel for queries `b l n h` on one device, and so many keys.

  cuDNN's takes half precision and head sizes that are multiples of 8 up to 128. A Pallas kernel is opaque to the
  partitioner: it runs on a device's own part, or there is only one device; tokens fill its blocks.
  """
  tokens, head_size = queries[1], queries[3]
  kernel = xla_attention
  if fused and platform in ('gpu', 'cuda') and jnp.finfo(dtype).bits == 16 and head_size % 8 == 0 and head_size <= 128:
    kernel = cudnn_attention
  if fused and platform == 'tpu' and on_shards and tokens % 128 == 0 and keys % 128 == 0:
    kernel = splash_attention
  logging.info(
    'attention on %s, %s, %d queries on %d keys, heads of %d: %s',
    platform, dtype, tokens, keys, head_size, kernel.__name__,
  )  # fmt: skip
  return kernel
