"""TREAD: tokens off the route pass by, gradients and samples see all, and nothing changes where nothing is routed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.layers.stack import in_segments
from jaxgen.models.pixart import PixArt
from jaxgen.models.routed import Routed

NET = PixArt(patch=2, depth=3, width=8, heads=2, own_modulation=True, route=(1, 2), hidden=(1, 2))
X, T, COND = jnp.linspace(-1, 1, 32).reshape(1, 4, 8, 1), jnp.asarray([300.0]), {'text': jnp.ones((1, 2, 8))}


def _params():
  params = jax.jit(lambda key: NET.init(key, X, T, COND))(jax.random.key(0))
  return jax.tree.map(lambda a: a + 0.05, params)


def test_kept_tokens_alone_go_through_the_middle():
  """Of a stack that doubles: those off the route are doubled twice, the others three times."""
  x = jnp.ones((2, 4, 1))
  kept, left = jnp.asarray([[0, 3], [1, 2]]), []
  run = lambda x, kept, start, stop: x * 2.0 ** (stop - start)  # noqa: E731
  got = in_segments(
    run, x, depth=3, route=(1, 2), kept=kept, hidden=(1,), leave=lambda depth, x: left.append((depth, x[0, 0, 0]))
  )
  np.testing.assert_array_equal(got[..., 0], [[8, 4, 4, 8], [4, 8, 8, 4]])
  np.testing.assert_array_equal(in_segments(run, x, depth=3, route=(1, 2))[..., 0], np.full((2, 4), 8))
  assert left == [(1, 2.0)]


def test_a_network_is_routed_in_training_alone():
  params, net = _params(), Routed(NET, keep=0.5)
  apply = jax.jit(lambda params, key: (
    net.apply(params, X, T, COND, train=True, rngs={'dropout': key}, mutable=['hidden']),
    net.apply(params, X, T, COND, train=False, rngs={'dropout': key}),
    NET.apply(params, X, T, COND, train=True),
  ))  # fmt: skip
  (out, kept), sampled, plain = apply(params, jax.random.key(1))
  np.testing.assert_allclose(sampled, plain, atol=1e-6)
  assert jnp.abs(out - plain).max() > 1e-6
  (before,), (after,) = kept['hidden']['depth_1'], kept['hidden']['depth_2']
  changed = jnp.abs(after - before).max(-1) > 0
  assert changed.sum() == 4  # of 8 tokens


def test_a_route_has_to_be_there():
  with pytest.raises(ValueError, match='has no route'):
    Routed(NET.clone(route=None)).init(jax.random.key(0), X, T, COND)
  with pytest.raises(ValueError, match=r'keep is 1\.5'):
    Routed(NET, keep=1.5).init(jax.random.key(0), X, T, COND)
