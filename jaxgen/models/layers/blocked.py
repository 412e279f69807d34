"""Attention by blocks of keys, with forward derivatives: Eq. 1 of attention.py, whose memory grows with the tokens.

Fused kernels have a gradient, but no forward derivative, which MeanFlow and sCM take. With logits z_ij = s q_i k_j, the
directions q', k', v', and p the softmax of z over j, the derivative along them is

  (1)  z'_ij = s (q'_i k_j + q_i k'_j),   o'_i = sum_j p_ij (z'_ij v_j + v'_j) - (sum_j p_ij z'_ij) o_i

One pass over blocks of keys has running maxima, and sums of p, p v, p (z' v + v') and p z' (Dao et al. 2022, for the
first two), so the weights of all tokens for all tokens are never in memory. The gradient computes them again by blocks:

  (2)  dz_ij = p_ij (g_i v_j - g_i o_i),   dq = s dz k,   dk = s dz^T q,   dv = p^T g

The gradient of a loss on the value inside `jax.jvp`, such as that of MeanFlow, is Eq. 2 too; one of Eq. 1 itself is not
by blocks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.typing import Array, Bool, Float

BLOCK = 128  # keys


def blocked_attention(
  q: Float[Array, 'b l n h'],
  k: Float[Array, 'b k n h'],
  v: Float[Array, 'b k n h'],
  mask: Bool[Array, '#b k'] | None = None,
  bias: Array | None = None,
  *,
  scale: float | None = None,
  block: int = BLOCK,
) -> Float[Array, 'b l n h']:
  """Eq. 1 of attention.py.

  Args:
    q, k, v: queries, keys and values.
    mask: True for keys that are attended to; None for all.
    bias: none; part of every kernel's signature.
    scale: s; None for 1 / sqrt(h).
    block: keys at a time.
  """
  assert bias is None
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  kept = jnp.ones(k.shape[:2], bool) if mask is None else jnp.broadcast_to(mask, k.shape[:2])
  pad = -k.shape[1] % block
  k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (k, v))
  kept = jnp.pad(kept, ((0, 0), (0, pad)))
  return _attend(block, scale, q, k, v, kept)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attend(block: int, scale: float, q: Array, k: Array, v: Array, kept: Array) -> Array:
  return _value(block, scale, q, k, v, kept)


@_attend.defjvp
def _along(block: int, scale: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
  q, k, v, kept = primals
  along = [
    jnp.zeros_like(x) if t.dtype == jax.dtypes.float0 else t for x, t in zip(primals[:3], tangents, strict=False)
  ]
  out = _value(block, scale, q, k, v, kept)
  return out, _derivative(block, scale, (q, k, v, kept), tuple(along), out)


def _derivative(block: int, scale: float, arrays: Any, along: Any, out: Array) -> Array:
  """o' of Eq. 1."""
  q, k, v, kept = arrays
  dq, dk, dv = (x.astype(jnp.float32) for x in along)
  queries = q.astype(jnp.float32) * scale, dq * scale

  def step(carry: Any, part: Any) -> tuple[Any, None]:
    (m, l, a, c), (k, v, dk, dv, kept) = carry, part
    z = _logits(queries[0], k, kept)
    dz = _einsum('blnh,bknh->bnlk', queries[1], k) + _einsum('blnh,bknh->bnlk', queries[0], dk)
    m_new, shrink, p = _softened(m, z)
    pdz = p * dz
    a = a * shrink[..., None] + _einsum('bnlk,bknh->bnlh', pdz, v) + _einsum('bnlk,bknh->bnlh', p, dv)
    return (m_new, l * shrink + p.sum(-1), a, c * shrink + pdz.sum(-1)), None

  m, l, a = _start(q, v)
  (_, l, a, c), _ = jax.lax.scan(step, (m, l, a, jnp.zeros_like(l)), _parts(block, k, v, dk, dv, kept))
  of_out = out.astype(jnp.float32).swapaxes(1, 2)
  return (a / l[..., None] - (c / l)[..., None] * of_out).swapaxes(1, 2).astype(out.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _value(block: int, scale: float, q: Array, k: Array, v: Array, kept: Array) -> Array:
  return _forward(block, scale, q, k, v, kept)[0]


def _forward(block: int, scale: float, q: Array, k: Array, v: Array, kept: Array) -> tuple[Array, Any]:
  scaled = q.astype(jnp.float32) * scale

  def step(carry: Any, part: Any) -> tuple[Any, None]:
    (m, l, a), (k, v, kept) = carry, part
    m, shrink, p = _softened(m, _logits(scaled, k, kept))
    return (m, l * shrink + p.sum(-1), a * shrink[..., None] + _einsum('bnlk,bknh->bnlh', p, v)), None

  (m, l, a), _ = jax.lax.scan(step, _start(q, v), _parts(block, k, v, kept))
  out = (a / l[..., None]).swapaxes(1, 2).astype(v.dtype)
  return out, (q, k, v, kept, out, m + jnp.log(l))


def _backward(block: int, scale: float, saved: Any, g: Array) -> tuple[Array, Array, Array, None]:
  """Eq. 2."""
  q, k, v, kept, out, log_sum = saved
  scaled, g = q.astype(jnp.float32) * scale, g.astype(jnp.float32)
  of_out = jnp.sum(g * out.astype(jnp.float32), axis=-1).swapaxes(1, 2)  # b n l

  def step(dq: Array, part: Any) -> tuple[Array, tuple[Array, Array]]:
    k, v, kept = part
    p = jnp.exp(_logits(scaled, k, kept) - log_sum[..., None])
    dz = p * (_einsum('blnh,bknh->bnlk', g, v) - of_out[..., None])
    dk, dv = _einsum('bnlk,blnh->bknh', dz, scaled), _einsum('bnlk,blnh->bknh', p, g)
    return dq + scale * _einsum('bnlk,bknh->blnh', dz, k), (dk, dv)

  dq, (dk, dv) = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), _parts(block, k, v, kept))
  dk, dv = (x.swapaxes(0, 1).reshape(k.shape) for x in (dk, dv))
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_value.defvjp(_forward, _backward)


def _einsum(spec: str, *arrays: Array) -> Array:
  return jnp.einsum(spec, *arrays, preferred_element_type=jnp.float32)


def _logits(scaled: Array, k: Array, kept: Array) -> Float[Array, 'b n l k']:
  z = _einsum('blnh,bknh->bnlk', scaled, k.astype(jnp.float32))
  return jnp.where(kept[:, None, None], z, jnp.finfo(jnp.float32).min)


def _softened(m: Array, z: Array) -> tuple[Array, Array, Array]:
  """The new maximum, what sums of the old one are worth, and exp of the logits; 0 where there was nothing yet."""
  new = jnp.maximum(m, z.max(-1))
  return new, jnp.exp(m - new), jnp.where(z > jnp.finfo(jnp.float32).min, jnp.exp(z - new[..., None]), 0.0)


def _start(q: Array, v: Array) -> tuple[Array, Array, Array]:
  b, l, n, _ = q.shape
  low = jnp.full((b, n, l), jnp.finfo(jnp.float32).min / 2)
  return low, jnp.zeros((b, n, l)), jnp.zeros((b, n, l, v.shape[-1]))


def _parts(block: int, *arrays: Array) -> tuple[Array, ...]:
  """Blocks along axis 1, in front."""
  return tuple(x.reshape(len(x), -1, block, *x.shape[2:]).swapaxes(0, 1) for x in arrays)
