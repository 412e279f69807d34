"""Drifting models: the field against a transcription of Algorithm 2, and that samples spread over two points."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.models.mlp import MLPDenoiser
from jaxgen.objectives.few_step import drifting
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step


def _softmax(l, axis):
  e = np.exp(l - l.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def test_the_drift_is_algorithm_2():
  """cdist; the diagonal of negatives far away; softmax over both axes; weights crossed."""
  rng = np.random.default_rng(0)
  x, data, h = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), 0.3
  of_data = np.linalg.norm(x[:, None] - data[None], axis=-1)
  of_self = np.linalg.norm(x[:, None] - x[None], axis=-1) + 1e6 * np.eye(5)
  logits = -np.concatenate([of_data, of_self], 1) / h
  a = np.sqrt(_softmax(logits, 1) * _softmax(logits, 0))
  p, n = a[:, :7], a[:, 7:]
  want = (p * n.sum(1, keepdims=True)) @ data - (n * p.sum(1, keepdims=True)) @ x
  got = drifting.drift(jnp.asarray(-logits, jnp.float32), jnp.asarray(np.concatenate([data, x]), jnp.float32), 7)
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(drifting.distances(jnp.float32(x), jnp.float32(data)), of_data, rtol=1e-4)


def test_no_drift_where_samples_are_the_data_and_none_between_classes():
  x = jnp.asarray([[0.0, 1.0], [2.0, 0.5], [-1.0, 0.3]])
  yes = jnp.ones((3, 3), bool)
  alike = drifting.drift(jnp.tile(drifting.distances(x, x) + 1e6 * jnp.eye(3), (1, 2)), jnp.concatenate([x, x]), 3)
  np.testing.assert_allclose(alike, 0, atol=1e-6)
  apart = jnp.asarray([[True, False, False], [False, True, True], [False, True, True]])
  far = x.at[1:].add(50.0)
  got, want = (drifting.field(x, data, (0.2,), apart, apart) for data in (x + 0.1, far + 0.1))
  assert jnp.isfinite(got).all()
  np.testing.assert_allclose(jnp.sign(got[0]), jnp.sign(want[0]))  # the others' data do not pull it
  assert jnp.abs(drifting.field(x, x + 1.0, (0.2,), yes, yes)).max() > 0


def test_samples_spread_over_two_points():
  data = jnp.where(jnp.arange(64) % 2, 0.7, -0.7).reshape(64, 1, 1, 1)
  objective = drifting.drifting(MLPDenoiser(32, 2), shape=(1, 1, 1), bank=128)
  optimizers, batch = {'net': optax.adam(3e-3)}, {'image': data}
  step = make_train_step(objective, optimizers, {})

  @jax.jit
  def run(key):
    state = init_state(objective, optimizers, {}, batch, key)
    body = lambda state, i: (step(state, {}, batch, jax.random.fold_in(key, i))[0], None)  # noqa: E731
    state = jax.lax.scan(body, state, jnp.arange(400))[0]
    return objective.sample(state.params, {}, {}, jax.random.split(jax.random.key(1), 256)), state.extra['bank']

  images, bank = run(jax.random.key(0))
  assert bank['drawn'] == 400 * 64 and len(bank['rows']['image']) == 128
  assert 0.3 < np.mean(images > 0) < 0.7
  assert np.mean(np.abs(np.abs(images) - 0.7) < 0.2) > 0.6
  with pytest.raises(ValueError, match='a bank of 100 rows for batches of 64'):
    drifting.drifting(MLPDenoiser(), shape=(1, 1, 1), bank=100).init(jax.random.key(0), {}, batch)
