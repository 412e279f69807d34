"""Scaled dot-product attention, through one function that picks the platform's kernel.

  attention(q, k, v) = softmax(q k^T / sqrt(h)) v        (1)    Vaswani et al. 2017, per head of size h

The softmax is float32 whatever the inputs are. Models call `attention` and know no platform.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from jaxgen.typing import Array, Float

Kernel = Callable[[Array, Array, Array], Array]


def attention(
  q: Float[Array, 'b l n h'], k: Float[Array, 'b k n h'], v: Float[Array, 'b k n h']
) -> Float[Array, 'b l n h']:
  """Attends from every query to every key; see Eq. 1."""
  return _kernel(_platform(), q.dtype, q.shape[-1])(q, k, v)


def xla_attention(q: Array, k: Array, v: Array) -> Array:
  """Eq. 1 as two einsums: what runs where no fused kernel does."""
  logits = jnp.einsum('blnh,bknh->bnlk', q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(logits).astype(v.dtype)  # b n l k
  return jnp.einsum('bnlk,bknh->blnh', weights, v)


def cudnn_attention(q: Array, k: Array, v: Array) -> Array:
  """Eq. 1 in one cuDNN kernel."""
  return jax.nn.dot_product_attention(q, k, v, implementation='cudnn')


def _platform() -> str:
  """Where the computation goes: the default device's platform, if one is set."""
  device: Any = jax.config.jax_default_device  # pyrefly: ignore[missing-attribute]
  if device is None:
    return jax.default_backend()
  return device if isinstance(device, str) else device.platform


@functools.cache  # so that each choice is logged once
def _kernel(platform: str, dtype: jnp.dtype, head_size: int) -> Kernel:
  # cuDNN's fused attention takes half precision and head sizes that are multiples of 8 up to 128.
  half = jnp.finfo(dtype).bits == 16
  cudnn = platform == 'gpu' and half and head_size % 8 == 0 and head_size <= 128
  kernel = cudnn_attention if cudnn else xla_attention
  logging.info('attention on %s, %s, heads of %d: %s', platform, dtype, head_size, kernel.__name__)
  return kernel
