"""Splash attention: Eq. 1 of attention.py in one Pallas kernel for TPUs, forward and backward, by blocks of tokens.

The weights of all tokens for all tokens never reach the memory, so what is kept for the gradient grows with the tokens
rather than with their square. Dao et al. 2022, "FlashAttention"; the kernel is JAX's own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from jaxgen.models.layers import remat
from jaxgen.typing import Array

LANES = 128  # width of a TPU's vector registers: heads are padded to a multiple, tokens must be one
_LARGEST_BLOCK = 512
# Up to so many blocks of keys dq, dk and dv come from one kernel, which computes the weights again once and not twice;
# it writes a dq for each block, in the dtype of q, and adds them up: of many blocks that is much memory, and inexact.
_FUSED_BLOCKS = 2


def splash_attention(
  q: Array, k: Array, v: Array, mask: Array | None = None, *, scale: float | None = None, interpret: bool = False
) -> Array:
  """Eq. 1 on one device.

  Args:
    q, k, v: `b l n h`, and `b k n h` twice; l and k are multiples of `LANES`.
    mask: `b k`, the keys that are attended to; None for all.
    scale: factor of the logits; None for 1 / sqrt(h).
    interpret: runs the kernel's Python instead, on any platform; for tests.
  """
  head_size = q.shape[-1]
  scale = head_size**-0.5 if scale is None else scale
  kernel = _kernel(q.shape[2], q.shape[1], k.shape[1], interpret)
  # Zeros in the padding add nothing to a product, nor to the gradient of what is not padding.
  pad = [(0, 0)] * 3 + [(0, -head_size % LANES)]
  q, k, v = (jnp.pad(array, pad).swapaxes(1, 2) for array in (q * scale, k, v))  # b n l h
  segments = None
  if mask is not None:  # queries attend within their segment, which is 1
    kept = jnp.broadcast_to(mask, (len(k), k.shape[2])).astype(jnp.int32)
    segments = splash.SegmentIds(jnp.ones((len(q), q.shape[2]), jnp.int32), kept)
  out: Any = jax.vmap(kernel)(q, k, v, segments)
  return out.swapaxes(1, 2)[..., :head_size]


def _kernel(heads: int, queries: int, keys: int, interpret: bool):
  block_q, block_kv = block(queries), block(keys)
  fused = keys <= _FUSED_BLOCKS * block_kv
  return splash.make_splash_mha_single_device(
    masks.MultiHeadMask([masks.FullMask((queries, keys))] * heads),
    block_sizes=splash.BlockSizes(
      block_q=block_q,
      block_kv=block_kv,
      block_q_dkv=block_q,
      block_kv_dkv=block_kv,
      block_q_dq=None if fused else block_q,
      block_kv_dq=None if fused else block_kv,
      use_fused_bwd_kernel=fused,
    ),
    residual_checkpoint_name=remat.ATTENTION,
    interpret=interpret,
  )


def block(tokens: int) -> int:
  """The largest block of tokens that divides them."""
  return max(size for size in range(LANES, _LARGEST_BLOCK + 1, LANES) if tokens % size == 0)
