"""Attention by blocks: values, gradients and forward derivatives of XLA's, in memory that is linear in the tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.layers.attention import xla_attention
from jaxgen.models.layers.blocked import blocked_attention

KEYS = jax.random.split(jax.random.key(0), 7)


def _arrays(queries, keys):
  shapes = [(2, queries, 2, 4), (2, keys, 2, 4), (2, keys, 2, 4)]
  make = lambda keys_: [jax.random.normal(key, shape) for key, shape in zip(keys_, shapes, strict=True)]  # noqa: E731
  return make(KEYS[:3]), make(KEYS[3:6])


@pytest.mark.parametrize('masked', [False, True])
def test_it_is_xlas_attention_with_its_derivatives(masked):
  primals, along = _arrays(6, 10)
  mask = jnp.arange(10)[None] < jnp.asarray([[3], [10]]) if masked else None

  weight = jnp.cos(jnp.arange(6.0 * 2 * 4).reshape(1, 6, 2, 4))

  @jax.jit
  def both(primals, along):
    found = []
    for kernel, options in ((blocked_attention, {'block': 4}), (xla_attention, {})):
      attend = lambda *args, kernel=kernel, options=options: kernel(*args, mask, **options)  # noqa: E731
      out, forward = jax.jvp(attend, tuple(primals), tuple(along))
      grads = jax.grad(lambda args, attend=attend: jnp.sum(weight * attend(*args)))(primals)

      def within(args, attend=attend):
        out, forward = jax.jvp(attend, tuple(args), tuple(along))
        return jnp.sum(weight * (out - jax.lax.stop_gradient(forward)) ** 2)  # MeanFlow's loss

      found.append((out, forward, grads, jax.grad(within)(primals)))
    return found

  got, want = both(primals, along)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def _temporaries(kernel, tokens):
  q = jax.ShapeDtypeStruct((1, tokens, 1, 8), jnp.float32)

  def loss(q, dq):
    out, forward = jax.jvp(lambda q: kernel(q, q, q), (q,), (dq,))
    return jnp.sum((out - jax.lax.stop_gradient(forward)) ** 2)

  return jax.jit(jax.grad(loss)).lower(q, q).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_tokens_not_with_their_square():
  small, large = (_temporaries(blocked_attention, tokens) for tokens in (1024, 4096))
  assert large < 5 * small, (small, large)
  assert _temporaries(xla_attention, 4096) > 5 * large


def test_half_precision_keeps_its_dtype():
  primals = [x.astype(jnp.bfloat16) for x in _arrays(6, 10)[0]]
  out, forward = jax.jit(lambda *args: jax.jvp(lambda *a: blocked_attention(*a, block=4), args, args))(*primals)
  assert out.dtype == forward.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(out), np.float32(xla_attention(*primals)), atol=0.03)
