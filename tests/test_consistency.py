"""Consistency models: the end of the path is their fixed point, and they learn it from data or from a teacher."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.objectives import distances
from jaxgen.objectives.few_step.consistency import average_of, consistency, num_intervals
from jaxgen.processes.edm import edm
from jaxgen.processes.process import expand
from jaxgen.train_state import TrainState, init_state
from jaxgen.train_step import make_train_step
from tests.analytic import compiled, gaussian, mixture

MEAN, VARIANCE, STD = 0.3, 0.25, 0.5
PROCESS = edm()
TEACHER = gaussian(PROCESS, MEAN, VARIANCE)


class Exact(nn.Module):
  """F of the true f: where the ODE of N(MEAN, VARIANCE) ends, at sigma_min."""

  @nn.compact
  def __call__(self, seen, network_time, cond, *, train):
    sigma, lowest = jnp.exp(4 * network_time), 0.002
    x = expand(jnp.sqrt(sigma**2 + STD**2), seen) * seen
    end = MEAN + expand(jnp.sqrt((VARIANCE + lowest**2) / (VARIANCE + sigma**2)), x) * (x - MEAN)
    skip = STD**2 / ((sigma - lowest) ** 2 + STD**2)
    out = STD * (sigma - lowest) / jnp.sqrt(sigma**2 + STD**2)
    return (end - expand(skip, x) * x) / jnp.maximum(expand(out, x), 1e-6)


class Small(nn.Module):
  """Three layers for one pixel."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    h = jnp.concatenate([x.reshape(len(x), 1), t[:, None]], 1)
    for _ in range(3):
      h = nn.silu(nn.Dense(64)(h))
    return nn.Dense(1)(h).reshape(x.shape)


def _loss(objective, batch, step=0, params=None):
  state = TrainState(jnp.int32(step), jnp.int32(0), {}, {}, {}, {})
  run = jax.jit(lambda batch, key: objective.phases[0].loss(params or {'net': {}}, state, {}, batch, key))
  return run(batch, jax.random.key(0))


def test_the_end_of_the_path_has_no_loss_under_distillation():
  x0 = MEAN + STD * np.random.default_rng(0).standard_normal((256, 1, 1, 1)).astype(np.float32)
  batch = {'image': jnp.asarray(x0)}
  make = partial(consistency, Exact(), shape=(1, 1, 1), steps=8, first=64, last=64)
  distilled, from_data = make(teacher=lambda frozen: TEACHER), make()
  assert _loss(distilled, batch)[1].metrics['error'] < 1e-5
  assert _loss(from_data, batch)[1].metrics['error'] > 1e-4  # one draw of the noise is not the path


def test_the_distance_of_the_loss_is_a_choice():
  x0 = MEAN + STD * np.random.default_rng(0).standard_normal((64, 2, 2, 1)).astype(np.float32)
  make = partial(consistency, Exact(), shape=(2, 2, 1), steps=8, first=16, last=16)
  twice = lambda frozen, a, b: 2 * distances.pseudo_huber(frozen, a, b)  # noqa: E731
  plain, doubled = (_loss(make(**kwargs), {'image': jnp.asarray(x0)})[0] for kwargs in ({}, {'distance': twice}))
  np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-6)


def test_pseudo_huber_is_a_length_that_is_smooth_at_zero():
  a, c = jnp.zeros((2, 3, 4, 1)), 0.00054 * np.sqrt(12)
  found = distances.pseudo_huber({}, a, a.at[1, 0, 0, 0].set(3.0).at[1, 2, 1, 0].set(4.0))
  np.testing.assert_allclose(found, [0, np.sqrt(25 + c**2) - c], rtol=1e-6)
  slope = jax.grad(lambda a: distances.pseudo_huber({}, a, jnp.zeros_like(a)).sum())(a)
  assert (slope == 0).all()


@pytest.mark.parametrize('times', [(1.0,), (1.0, 0.5)])
def test_exact_steps_land_on_the_data(times):
  objective = consistency(Exact(), shape=(1, 1, 1), steps=1, times=times, limit=None)
  images = compiled(lambda keys: objective.sample({'net': {}}, {}, {}, keys), jax.random.split(jax.random.key(0), 4096))
  np.testing.assert_allclose([images.mean(), images.var()], [MEAN, VARIANCE], atol=0.02)


def test_without_noise_it_is_the_identity():
  """Whatever the network: the last of many steps, at sigma_min, changes nothing."""
  objective = consistency(Small(), shape=(1, 1, 1), steps=1, times=(1.0, 1e-9), limit=None)
  single = consistency(Small(), shape=(1, 1, 1), steps=1, limit=None)
  params = jax.jit(lambda key: objective.init(key, {}, {}))(jax.random.key(0))['params']
  keys = jax.random.split(jax.random.key(1), 16)
  two, one = (compiled(lambda keys, o=o: o.sample(params, {}, {}, keys), keys) for o in (objective, single))
  np.testing.assert_allclose(two, one, atol=1e-5)


def test_the_grid_doubles_on_schedule():
  counts = [int(num_intervals(jnp.int32(k), 800, first=10, last=1280)) for k in (0, 99, 100, 350, 799, 5000)]
  assert counts == [10, 10, 20, 80, 1280, 1280]


def test_a_grid_that_is_no_power_of_two_times_the_first_ends_at_the_last():
  """iCT's (Song & Dhariwal 2024): K' = floor(K / (log2 floor(s1 / s0) + 1)), min(s0 2^floor(k / K'), s1)."""
  counts = [int(num_intervals(jnp.int32(k), 800, first=10, last=150)) for k in (0, 162, 163, 651, 652, 799)]
  assert counts == [10, 10, 20, 80, 150, 150]


@pytest.mark.parametrize('distil', [False, True], ids=['training', 'distillation'])
def test_one_step_learns_two_points(distil):
  steps = 500
  data = np.where(np.arange(256) % 2, 0.8, -0.8).astype(np.float32).reshape(-1, 1, 1, 1)
  teacher = (lambda frozen: mixture(PROCESS, (-0.8, 0.8), 1e-4)) if distil else None
  objective = consistency(
    Small(), shape=(1, 1, 1), steps=steps, data_std=0.8, first=5, last=80, teacher=teacher, limit=None
  )
  optimizers = {'net': optax.adam(optax.cosine_decay_schedule(3e-3, steps))}
  step, batch = make_train_step(objective, optimizers, {}), {'image': jnp.asarray(data)}

  @jax.jit
  def run(batch):
    state = init_state(objective, optimizers, {}, batch, jax.random.key(0))
    body = lambda state, i: step(state, {}, batch, jax.random.fold_in(jax.random.key(1), i))  # noqa: E731
    return jax.lax.scan(body, state, jnp.arange(steps))[0].params

  params = run(batch)
  images = compiled(lambda keys: objective.sample(params, {}, {}, keys), jax.random.split(jax.random.key(2), 1024))
  assert 0.3 < np.mean(images > 0) < 0.7
  assert np.mean(np.abs(np.abs(images) - 0.8) < 0.3) > 0.6


class Constant(nn.Module):
  """F is one number everywhere."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    return jnp.broadcast_to(self.param('number', nn.initializers.zeros_init(), ()), x.shape)


def test_the_target_may_be_an_average():
  batch = {'image': jnp.zeros((8, 1, 1, 1))}
  make = partial(consistency, Constant(), shape=(1, 1, 1), steps=8, first=16, last=16)
  params, other = ({'net': {'number': jnp.float32(number)}} for number in (0.2, 0.7))

  def loss(objective, ema):
    state = TrainState(jnp.int32(0), jnp.int32(0), params, {}, ema, {})
    return objective.phases[0].loss(params, state, {}, batch, jax.random.key(0))[0]

  averaged = make(target=average_of('target'))
  same, moved = loss(averaged, {'target': params['net']}), loss(averaged, {'target': other['net']})
  np.testing.assert_allclose(same, loss(make(), {}), rtol=1e-6)
  assert abs(moved - same) > 1e-3
  with pytest.raises(ValueError, match="the average 'target'; the run keeps none"):
    loss(averaged, {})


def test_what_cannot_be_is_refused():
  with pytest.raises(ValueError, match='wanted 1 <= first <= last'):
    consistency(Small(), shape=(1, 1, 1), steps=1, first=20, last=10)
  with pytest.raises(ValueError, match='must start at 1 and fall'):
    consistency(Small(), shape=(1, 1, 1), steps=1, times=(0.5, 1.0))
