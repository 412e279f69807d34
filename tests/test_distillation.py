"""Students of an earlier stage: their targets, that they learn them, and how a stage hands on its weights."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import sharding
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.few_step import distillation
from jaxgen.processes import parameterisation, times
from jaxgen.processes.process import expand
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.euler import euler
from jaxgen.samplers.sampler import Sampler
from jaxgen.train import train
from jaxgen.train_state import TrainState
from tests import toys
from tests.analytic import PROCESSES, compiled, gaussian

COSINE, FLOW = PROCESSES['vp_cosine'], rectified_flow()
MEAN, STD = 0.3, 0.5


def _keys(n):
  return jax.random.split(jax.random.key(0), n)


def _state(**extra):
  return TrainState(jnp.int32(0), jnp.int32(0), {}, {}, {}, extra)


@pytest.mark.parametrize('process', ['vp_cosine', 'rectified_flow'])
def test_one_step_with_the_target_is_two_steps_of_the_teacher(process):
  process, n = PROCESSES[process], 4
  teacher = gaussian(process, MEAN, STD**2)
  t = jnp.asarray([1.0, 0.75, 0.5, 0.25])
  z = jnp.linspace(-2, 2, 4).reshape(4, 1)

  @jax.jit
  def run(z):
    target = distillation.progressive_target(lambda z, t: teacher(z, t, {}), process, z, t, n)
    s = t - 1 / n
    eps = (z - expand(process.alpha(t), z) * target) / expand(process.sigma(t), z)
    once = expand(process.alpha(s), z) * target + expand(process.sigma(s), z) * eps
    twice = [ddim(teacher, process, z[i : i + 1], jnp.stack([t[i], t[i] - 0.5 / n, s[i]]))[0] for i in range(4)]
    return once, jnp.stack(twice)

  np.testing.assert_allclose(*map(np.asarray, run(z)), atol=2e-5)


class Linear(nn.Module):
  """x0 = weight x_t + bias, whatever the time."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    return self.param('weight', nn.initializers.constant(0.6), ()) * x + self.param('bias', nn.initializers.zeros, ())


def test_a_student_of_one_step_learns_its_teachers_two():
  objective = distillation.progressive(
    Linear(), COSINE, shape=(1, 1, 1), steps=1, parameterisation=parameterisation.x0, limit=None
  )
  teacher = {'weight': jnp.float32(0.5), 'bias': jnp.float32(0.2)}
  batch, optimizer = {'image': jnp.zeros((64, 1, 1, 1))}, optax.adam(0.05)

  def step(carry, key):
    params, opt_state = carry
    loss = lambda params: objective.phases[0].loss(params, _state(teacher=teacher), {}, batch, key)[0]  # noqa: E731
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  start = {'net': {'weight': jnp.float32(0.0), 'bias': jnp.float32(0.0)}}
  learned = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), _keys(300))[0][0])(start)
  sample = partial(distillation.progressive, Linear(), COSINE, shape=(1, 1, 1), limit=None)
  of = lambda steps, params: compiled(  # noqa: E731
    lambda keys: sample(steps=steps, parameterisation=parameterisation.x0).sample(params, {}, {}, keys),
    _keys(8),
  )
  np.testing.assert_allclose(of(1, learned), of(2, {'net': teacher}), atol=0.01)


def test_a_distance_is_added_to_the_squared_error():
  make = partial(
    distillation.progressive, Linear(), COSINE, shape=(1, 1, 1), steps=1, parameterisation=parameterisation.x0
  )
  state = _state(teacher={'weight': jnp.float32(0.5), 'bias': jnp.float32(0.2)})
  params, batch = {'net': {'weight': jnp.float32(0.0), 'bias': jnp.float32(0.0)}}, {'image': jnp.zeros((8, 1, 1, 1))}
  squares = lambda frozen, a, b: frozen * jnp.sum((a - b) ** 2, (1, 2, 3))  # noqa: E731
  loss = lambda **kwargs: make(**kwargs).phases[0].loss(params, state, 3.0, batch, jax.random.key(0))[0]  # noqa: E731
  np.testing.assert_allclose(loss(distance=squares), 4 * loss(), rtol=1e-6)


# Reflow


class Flow(nn.Module):
  """x0 of N(MEAN, STD^2) from x_t: the mean over all noises, or that of the one noise that the ODE pairs it with."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    straight = self.param('straight', nn.initializers.zeros, ())
    t = expand(t / 1000, x)
    mean = gaussian(FLOW, MEAN, STD**2)(x, t.reshape(len(x)), {}).x0
    paired = MEAN + STD * (x - (1 - t) * MEAN) / ((1 - t) * STD + t)
    return straight * paired + (1 - straight) * mean


def _reflow(pool, fresh):
  return distillation.paired(
    Flow(),
    FLOW,
    shape=(1, 1, 1),
    parameterisation=parameterisation.x0,
    times=times.uniform(),
    sampler=Sampler(euler, grids.uniform(1)),
    teacher=Sampler(euler, grids.uniform(100)),
    pool=pool,
    fresh=fresh,
    limit=None,
  )


def test_pairs_are_the_teachers_and_their_lines_do_not_cross():
  objective, batch = _reflow(256, 64), {'image': jnp.zeros((256, 1, 1, 1))}
  extra = jax.jit(lambda key: objective.init(key, {}, batch))(jax.random.key(0))['extra']
  extra['pairs'] |= {name: jnp.full((256, 1, 1, 1), jnp.nan) for name in ('x0', 'eps')}  # of no draw yet
  run = jax.jit(lambda params, extra, key: objective.phases[0].loss(params, _state(**extra), {}, batch, key))
  straight, crossing = ({'net': {'straight': jnp.float32(value)}} for value in (1, 0))
  loss, aux = run(straight, extra, jax.random.key(1))
  pairs = aux.extra['pairs']
  assert int(pairs['drawn']) == 64
  drawn = np.asarray(pairs['x0'][:64] - (MEAN + STD * pairs['eps'][:64]))
  assert np.abs(drawn).max() < 0.04
  assert np.isnan(pairs['x0'][64:]).all()
  assert loss < 1e-3
  assert run(crossing, extra, jax.random.key(1))[0] > 0.02


def test_a_student_of_one_step_sees_noise_alone_and_a_distance_is_added():
  make = partial(
    distillation.paired,
    Linear(),
    COSINE,
    shape=(1, 1, 1),
    parameterisation=parameterisation.x0,
    times=times.discrete(1),
    sampler=Sampler(ddim, grids.uniform(1)),
    teacher=Sampler(lambda denoise, process, x, times, *, cond=None, keys=None: 3 * x + 0.1, grids.uniform(1)),
    pool=64,
    fresh=64,
  )
  batch = {'image': jnp.zeros((64, 1, 1, 1))}
  extra = jax.jit(lambda key: make().init(key, {}, batch))(jax.random.key(0))['extra']

  def loss(params, **kwargs):
    phase = make(**kwargs).phases[0]
    run = jax.jit(lambda params, extra: phase.loss({'net': params}, _state(**extra), 2.0, batch, jax.random.key(1))[0])
    return run(params, extra)

  squares = lambda frozen, a, b: frozen * jnp.sum((a - b) ** 2, (1, 2, 3))  # noqa: E731
  assert loss({'weight': jnp.float32(3.0), 'bias': jnp.float32(0.1)}) < 1e-6
  wrong = {'weight': jnp.float32(0.0), 'bias': jnp.float32(0.0)}
  np.testing.assert_allclose(loss(wrong, distance=squares), 3 * loss(wrong), rtol=1e-5)


def test_the_oldest_pairs_make_room():
  pairs = {'x0': jnp.zeros((5, 1)), 'eps': jnp.zeros((5, 1)), 'cond': {'label': jnp.zeros(5, int)}, 'drawn': 4}
  got = distillation.refill(pairs, lambda x, cond, keys: 2 * x, {'label': jnp.array([7, 8, 9])}, jax.random.key(0), 2)
  np.testing.assert_array_equal(got['cond']['label'], [8, 0, 0, 0, 7])
  np.testing.assert_array_equal(got['x0'], 2 * got['eps'])
  assert got['drawn'] == 6
  with pytest.raises(ValueError, match='9 fresh pairs for a pool of 8'):
    _reflow(8, 9)


# Stages


def test_a_stage_begins_with_what_the_last_would_be_sampled_with(tmp_path):
  x0 = parameterisation.x0
  first = diffusion(
    Linear(),
    COSINE,
    shape=(2, 4, 1),
    parameterisation=x0,
    times=times.uniform(),
    sampler=Sampler(ddim, grids.uniform(4)),
  )
  second = distillation.progressive(Linear(), COSINE, shape=(2, 4, 1), steps=2, parameterisation=x0)
  stages = tuple(
    toys.experiment(
      objective=objective,
      optimizers={'net': optax.adam(0.1)},
      steps=3,
      begin=begin,
      mesh=sharding.make_mesh(data=8),  # scalars do not split
    )
    for objective, begin in ((first, None), (second, distillation.of_last_stage))
  )
  taught = train(stages[0], tmp_path / 'first')
  done = train(stages, tmp_path / 'both')
  assert int(done.step) == 6
  for name, leaf in taught.ema['net'].items():
    np.testing.assert_array_equal(done.extra['teacher'][name], leaf)
    assert abs(float(done.params['net'][name] - leaf)) > 1e-4  # the student went on from there
  assert float(taught.ema['net']['weight']) != float(taught.params['net']['weight'])
  assert int(done.opt_state['net'][0].count) == 3


def test_a_state_of_an_adapter_alone_is_no_start_of_a_stage():
  state = _state().replace(params={'lora': {}})
  with pytest.raises(ValueError, match="the state holds 'lora' and no network 'net' to start from"):
    distillation.of_last_stage(state, state)
