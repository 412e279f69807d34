"""MeanFlow and shortcut models: the true average velocity is their fixed point, and they learn it."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import ema
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.few_step.mean_flow import mean_flow, mean_flow_target
from jaxgen.objectives.few_step.shortcut import shortcut, shortcut_target
from jaxgen.processes import times
from jaxgen.processes.parameterisation import x0
from jaxgen.processes.process import expand, noise_like
from jaxgen.samplers import grids
from jaxgen.train_state import init_state, sampling_params
from jaxgen.train_step import make_train_step
from tests.analytic import PROCESSES, compiled, gaussian

MEAN, VARIANCE = 0.3, 0.25
FLOW = PROCESSES['rectified_flow']


def _velocity(x, t):
  """The marginal velocity of data N(MEAN, VARIANCE)."""
  prediction = gaussian(FLOW, MEAN, VARIANCE)(x, t, {})
  return prediction.eps - prediction.x0


def _true_jump(x, t, r):
  """Eq. 1 in closed form, from where the ODE takes x."""
  deviation = lambda t: jnp.sqrt((1 - t) ** 2 * VARIANCE + t**2)  # noqa: E731
  earlier = (1 - r) * MEAN
  at_r = expand(earlier, x) + expand(deviation(r) / deviation(t), x) * (x - expand((1 - t) * MEAN, x))
  same = expand(t - r, x) < 1e-4
  return jnp.where(same, _velocity(x, t), (x - at_r) / jnp.where(same, 1.0, expand(t - r, x)))


class Exact(nn.Module):
  """A network without parameters that knows the average velocity, or where its line meets the data."""

  data: bool = False

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    u = _true_jump(x, t, t - cond['interval'])
    return x - expand(t, x) * u if self.data else u


class Small(nn.Module):
  """Two layers for one pixel; `label` moves it."""

  labels: bool = False

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    t, length = t[:, None], cond['interval'][:, None]
    parts = [x.reshape(len(x), 1), t, length]
    if self.labels:
      parts.append(jax.nn.one_hot(cond['label'], 3))
    h = jnp.concatenate(parts, 1)
    for _ in range(2):
      h = nn.silu(nn.Dense(64)(h))
    return nn.Dense(1)(h).reshape(x.shape)


@pytest.fixture(scope='module')
def points():
  draw = np.random.default_rng(0)
  x = draw.standard_normal((64, 1, 1, 1)).astype(np.float32)
  t = draw.uniform(0.3, 1.0, 64).astype(np.float32)
  return x, t, (t * draw.uniform(0.0, 0.9, 64)).astype(np.float32)


def test_the_average_velocity_is_what_mean_flow_wants(points):
  x, t, r = points
  u, target = compiled(lambda x, t, r: mean_flow_target(_true_jump, x, _velocity(x, t), t, r), x, t, r)
  np.testing.assert_allclose(u, target, atol=2e-4)
  at_t = lambda x, t, r: _velocity(x, t)  # noqa: E731
  wrong, target = compiled(lambda x, t, r: mean_flow_target(at_t, x, _velocity(x, t), t, r), x, t, r)
  assert np.abs(wrong - target).max() > 0.1


def test_the_average_velocity_is_what_a_shortcut_wants(points):
  x, t, r = points
  target = compiled(lambda x, t, r: shortcut_target(_true_jump, x, t, t - r), x, t, r)
  np.testing.assert_allclose(target, compiled(_true_jump, x, t, r), atol=1e-5)


EXACT = {
  'mean_flow': partial(mean_flow, Exact(), times=times.uniform()),
  'mean_flow of x0': partial(mean_flow, Exact(data=True), times=times.uniform(), parameterisation=x0),
  'shortcut': partial(shortcut, Exact(), time_scale=1.0),
}


@pytest.mark.parametrize('steps', [1, 4])
@pytest.mark.parametrize('method', EXACT)
def test_any_number_of_exact_jumps_lands_on_the_data(method, steps):
  objective = EXACT[method](shape=(1, 1, 1), jumps=grids.uniform(steps), limit=None)
  images = compiled(lambda keys: objective.sample({'net': {}}, {}, {}, keys), jax.random.split(jax.random.key(0), 4096))
  np.testing.assert_allclose([images.mean(), images.var()], [MEAN, VARIANCE], atol=0.02)


def _train(objective, batch, steps=400):
  """The averaged parameters after `steps` of the real train step."""
  optimizers = {'net': optax.adam(optax.cosine_decay_schedule(5e-3, steps))}
  averages = {'net': ema.Average('net', ema.warmup(0.98))}
  step = make_train_step(objective, optimizers, averages)

  @jax.jit
  def run(batch):
    state = init_state(objective, optimizers, averages, batch, jax.random.key(0))
    key = jax.random.key(1)

    def body(state, i):
      state, metrics = step(state, {}, batch, jax.random.fold_in(key, i))
      return state, metrics['loss'].total

    return jax.lax.scan(body, state, jnp.arange(steps))

  state, losses = run(batch)
  assert np.isfinite(losses).all()
  return sampling_params(state)


@pytest.mark.parametrize(
  'method',
  [partial(mean_flow, times=times.uniform(), different=0.5), partial(shortcut, finest=16, time_scale=1.0)],
  ids=['mean_flow', 'shortcut'],
)
def test_one_step_makes_the_distribution(method):
  """Data of two points: their average velocity is no constant, and one step of Euler lands on the mean."""
  data = np.where(np.arange(256) % 2, 0.8, -0.8).astype(np.float32).reshape(-1, 1, 1, 1)
  objective = method(Small(), shape=(1, 1, 1), jumps=grids.uniform(1), limit=None)
  params = _train(objective, {'image': jnp.asarray(data)})
  images = compiled(lambda keys: objective.sample(params, {}, {}, keys), jax.random.split(jax.random.key(2), 1024))
  assert 0.2 < np.mean(images > 0) < 0.8  # both points, however the network came to share them out
  assert 0.5 < np.abs(images).mean() < 1.0  # 0 for one step of Euler
  assert np.mean(np.abs(np.abs(images) - 0.8) < 0.3) > 0.6


@pytest.mark.slow
def test_guidance_is_learned_into_the_network():
  """The guided mean lies beyond the class's own, away from the other class."""
  label = np.arange(256) % 2
  noise = 0.3 * np.random.default_rng(0).standard_normal(256)
  data = (np.where(label, 0.5, -0.5) + noise).astype(np.float32).reshape(-1, 1, 1, 1)
  batch: dict[str, Any] = {'image': jnp.asarray(data), 'label': jnp.asarray(label, jnp.int32)}
  objective = mean_flow(
    Small(labels=True),
    shape=(1, 1, 1),
    times=times.uniform(),
    jumps=grids.uniform(1),
    conditioner=labels(2, drop_rate=0.2),
    scale=2.0,
    power=0.0,
    limit=None,
  )
  params = _train(objective, batch)
  keys, cond = jax.random.split(jax.random.key(2), 512), {'label': jnp.ones(512, jnp.int32)}
  images = compiled(lambda keys, cond: objective.sample(params, {}, cond, keys), keys, cond)
  assert images.mean() > 0.65  # the class's own is 0.5


class Told(nn.Module):
  """u is the interval that it reads."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    return expand(cond['interval'], x) * jnp.ones_like(x)


@pytest.mark.parametrize(('finest', 'interval'), [(4, 0.0), (8, 250.0)])
def test_the_shortest_jumps_are_taken_as_they_were_taught_at_interval_0(finest, interval):
  objective = shortcut(Told(), shape=(1, 1, 1), jumps=grids.uniform(4), finest=finest, limit=None)
  still = shortcut(Told(), shape=(1, 1, 1), jumps=grids.uniform(4), finest=4, limit=None)
  keys = jax.random.split(jax.random.key(0), 2)
  noise, moved = (compiled(lambda keys, o=o: o.sample({'net': {}}, {}, {}, keys), keys) for o in (still, objective))
  np.testing.assert_allclose(noise - moved, interval, rtol=1e-5)
  assert np.abs(noise).max() < 4


@pytest.mark.parametrize(('method', 'scale'), [(partial(mean_flow, times=times.uniform()), 1.0), (shortcut, 1000.0)])
def test_a_network_that_is_differentiated_by_time_sees_it_unscaled(method, scale):
  make, keys = (
    partial(method, Told(), shape=(1, 1, 1), jumps=grids.uniform(1), limit=None),
    jax.random.split(jax.random.key(0), 2),
  )
  once, twice = (o.sample({'net': {}}, {}, {}, keys) for o in (make(), make(time_scale=2 * scale)))
  np.testing.assert_allclose(once - twice, scale, rtol=1e-5)


@pytest.mark.parametrize(('scale', 'kappa'), [(2.0, 0.0), (1.0, 0.5), (0.6, 0.7)])
def test_the_guided_velocity_mixes_what_the_paper_mixes(scale, kappa):
  """w v + k u(c) + (1 - w - k) u(null), for a network that puts out its label's number."""

  class OfLabel(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond, *, train):
      return jnp.broadcast_to(jnp.array([0.3, -0.2, 0.9])[cond['label']].reshape(-1, 1, 1, 1), x.shape)

  objective = mean_flow(
    OfLabel(),
    shape=(1, 1, 1),
    times=times.uniform(),
    jumps=grids.uniform(1),
    different=0.0,
    conditioner=labels(2),
    scale=scale,
    kappa=kappa,
    power=0.0,
  )
  batch, key = {'image': jnp.full((4, 1, 1, 1), 0.1), 'label': jnp.array([0, 1, 0, 1])}, jax.random.key(0)
  loss, _ = objective.phases[0].loss({'net': {}}, None, {}, batch, key)
  v = noise_like(batch['image'], jax.random.split(key, 7)[3]) - batch['image']
  conditional = jnp.array([0.3, -0.2])[batch['label']].reshape(-1, 1, 1, 1)
  target = scale * v + kappa * conditional + (1 - scale - kappa) * 0.9
  np.testing.assert_allclose(loss, jnp.mean((conditional - target) ** 2), rtol=1e-5)


def test_what_cannot_be_is_refused():
  with pytest.raises(ValueError, match='must fall from 1 to 0'):
    mean_flow(Small(), shape=(1, 1, 1), times=times.uniform(), jumps=np.array([0.0, 1.0]))
  with pytest.raises(ValueError, match='finest is 100; it must be a power of two'):
    shortcut(Small(), shape=(1, 1, 1), jumps=grids.uniform(1), finest=100)
  objective = shortcut(Small(), shape=(1, 1, 1), jumps=grids.uniform(1))
  with pytest.raises(ValueError, match='a batch of 6 does not divide into groups of 4'):
    objective.phases[0].loss({}, None, {}, {'image': jnp.zeros((6, 1, 1, 1))}, jax.random.key(0))
