"""What is learned of time: VDM's schedule, and the times at which the loss is large."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.models.monotone import Monotone
from jaxgen.objectives.diffusion import vlb
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.diffusion.vdm import ends_of_bound, process_of, vdm
from jaxgen.processes import parameterisation, times
from jaxgen.processes.process import expand
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.euler import euler
from jaxgen.samplers.sampler import Sampler
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step

ENDS = (-8.0, 4.0)
MEAN, VARIANCE = 0.2, 0.01


class Exact(nn.Module):
  """The best eps for N(MEAN, VARIANCE), from y alone, whatever the schedule."""

  @nn.compact
  def __call__(self, x, network_time, cond, *, train):
    y = expand(ENDS[0] + network_time / 1000 * (ENDS[1] - ENDS[0]), x) + self.param('off', nn.initializers.zeros, ())
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(-y)), jnp.sqrt(jax.nn.sigmoid(y))
    return sigma * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)


def _objective():
  return vdm(Exact(), shape=(4, 4, 1), sampler=Sampler(ddpm, grids.uniform(60)), ends=ENDS, width=32)


def _batch(n=512):
  image = MEAN + math.sqrt(VARIANCE) * np.random.default_rng(0).standard_normal((n, 4, 4, 1))
  return {'image': jnp.asarray(image, jnp.float32)}


def test_the_schedule_rises_from_end_to_end():
  net, t = Monotone(*ENDS, width=8), jnp.linspace(0, 1, 101)
  params, apply = jax.jit(net.init)(jax.random.key(0), t)['params'], jax.jit(net.apply)
  start = apply({'params': params}, t)
  np.testing.assert_allclose(start, ENDS[0] + t * (ENDS[1] - ENDS[0]), atol=0.3)
  wild = jax.tree.map(lambda leaf: leaf + 4 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
  y = np.asarray(apply({'params': wild}, t))
  np.testing.assert_allclose(y[[0, -1]], ENDS, atol=1e-4)
  assert (np.diff(y) > -1e-6).all()
  assert np.abs(y - np.asarray(start)).max() > 0.3


@pytest.mark.slow
def test_learning_the_schedule_halves_the_spread_and_leaves_the_bound():
  objective, batch = _objective(), _batch()
  optimizers = {'net': optax.sgd(0.0), 'schedule': optax.adam(0.03)}
  step = make_train_step(objective, optimizers, {})

  @jax.jit
  def run(batch):
    state = init_state(objective, optimizers, {}, batch, jax.random.key(0))
    body = lambda state, i: step(state, {}, batch, jax.random.fold_in(jax.random.key(1), i))  # noqa: E731
    return jax.lax.scan(body, state, jnp.arange(150))

  state, metrics = run(batch)
  of = lambda name: np.asarray(metrics[name].total)  # noqa: E731
  assert of('schedule/deviation')[-20:].mean() < 0.5 * of('schedule/deviation')[:5].mean()
  np.testing.assert_allclose(of('vdm/bound')[-20:].mean(), of('vdm/bound')[:20].mean(), rtol=0.02)
  # The bound of the best network is the entropy of 8-bit bins, but for what the ends of y leave.
  entropy = 0.5 * math.log2(2 * math.pi * math.e * VARIANCE) - math.log2(vlb.BIN)
  np.testing.assert_allclose(of('vdm/bound')[-20:].mean(), entropy, atol=0.15)
  images = jax.jit(objective.sample)(state.params, {}, {}, jax.random.split(jax.random.key(0), 256))
  np.testing.assert_allclose([images.mean(), images.var()], [MEAN, VARIANCE], rtol=0.08)


def test_the_ends_of_the_bound_are_the_prior_and_the_pixels():
  process, x0 = process_of(lambda t: ENDS[0] + t * (ENDS[1] - ENDS[0]), ENDS), _batch(8)['image']
  got = ends_of_bound(process, x0, jax.random.key(0))
  quiet = process_of(lambda t: -20.0 + t * 40, (-20.0, 20.0))
  assert jnp.all(got > vlb.prior_term(process, x0))
  np.testing.assert_allclose(ends_of_bound(quiet, jnp.round(x0 * 127.5) / 127.5, jax.random.key(0)), 0, atol=1e-2)


def test_the_bound_s_ends_have_noise_of_their_own(monkeypatch):
  """`jax.random.fold_in(key, i)` is one of `jax.random.split(key)`."""
  used, own, split = [], [], jax.random.split
  monkeypatch.setattr(jax.random, 'split', lambda key, *num: used.append(key) or split(key, *num))
  ended = lambda process, x0, key: own.append(key) or jnp.zeros(len(x0))  # noqa: E731
  monkeypatch.setattr('jaxgen.objectives.diffusion.vdm.ends_of_bound', ended)
  objective = _objective()
  params = objective.init(jax.random.key(0), {}, {})['params']
  objective.phases[0].loss(params, None, {}, _batch(2), jax.random.key(1))
  data = lambda keys: {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}  # noqa: E731
  assert len(used) >= 3
  assert not data(own) & data(used)


# Importance sampling of time


@pytest.mark.parametrize('steps', [20, None])
def test_times_are_drawn_where_the_loss_is_large_without_bias(steps):
  sampler = times.importance(steps, bins=20)
  loss = lambda t: 0.05 + t**4  # noqa: E731

  def body(memory, key):
    t, weight = sampler.draw(memory, key, 64)
    return sampler.update(memory, t, loss(t)), (t, weight)

  _, (t, weight) = jax.jit(lambda keys: jax.lax.scan(body, sampler.init(), keys))(
    jax.random.split(jax.random.key(0), 300)
  )
  t, weight = np.asarray(t), np.asarray(weight)
  assert (weight[:3] == 1).all()
  grid = (np.arange(20) + 1) / 20 if steps else (np.arange(2000) + 0.5) / 2000
  late = slice(150, None)
  estimates = (weight * loss(t))[late]
  np.testing.assert_allclose(estimates.mean(), loss(grid).mean(), rtol=0.02)
  assert estimates.std() < 0.35 * loss(grid).std()
  if steps:
    np.testing.assert_allclose(np.round(t * 20), t * 20, atol=1e-5)
    share = np.bincount(np.round(t[late] * 20).astype(int).ravel(), minlength=21)[1:] / t[late].size
    np.testing.assert_allclose(share, loss(grid) / loss(grid).sum(), atol=0.01)


def test_a_diffusion_model_remembers_its_losses():
  flow = rectified_flow()

  class Zero(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond, *, train):
      return self.param('scale', nn.initializers.zeros, ()) * x

  objective = diffusion(
    Zero(),
    flow,
    shape=(4, 4, 1),
    parameterisation=parameterisation.x0,
    times=times.importance(bins=4),
    sampler=Sampler(euler, grids.uniform(2)),
  )
  optimizers, batch = {'net': optax.sgd(0.0)}, _batch(64)
  state = init_state(objective, optimizers, {}, batch, jax.random.key(0))
  step = jax.jit(make_train_step(objective, optimizers, {}))
  state, metrics = step(state, {}, batch, jax.random.key(1))
  memory = state.extra['times']
  np.testing.assert_array_equal(memory['seen'], 1)
  mean = float(jnp.mean(batch['image'] ** 2))
  np.testing.assert_allclose(memory['losses'][:, 0], mean, rtol=0.7)
  np.testing.assert_allclose(metrics['loss'].total, mean, rtol=1e-4)
