"""The one train step: accumulation, clipping, the guard, averages, phases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import ema
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.train_state import init_state, sampling_params
from jaxgen.train_step import make_train_step

BATCH = {'image': jnp.arange(8.0).reshape(8, 1), 'target': jnp.linspace(-1, 1, 8).reshape(8, 1)}


def _quadratic(params, state, frozen, batch, key):
  """Mean squared error of a line; `frozen` scales it. Counts its calls in extra."""
  out = batch['image'] * params['net']['w'] + params['net']['b']
  loss = frozen['scale'] * jnp.mean((out - batch['target']) ** 2)
  return loss, Aux({'mean_input': batch['image'].mean()}, {'calls': state.extra['calls'] + 1})


def _objective(*phases: Phase) -> Objective:
  def init(key, frozen, batch):
    return {
      'params': {
        'net': {'w': jnp.float32(0.5), 'b': jnp.float32(-0.25)},
        'critic': {'c': jnp.float32(2.0)},
      },
      'extra': {'calls': jnp.int32(0)},
    }

  return Objective(init, phases or (Phase('net', 'net', _quadratic),), lambda *_: jnp.zeros((1, 1, 1, 1)))


def _run(objective=None, *, steps=1, batch=BATCH, scale=1.0, averages=None, optimizer=None, **kwargs):
  objective = objective or _objective()
  optimizers = {'net': optimizer or optax.adamw(0.1), 'critic': optax.sgd(0.5)}
  averages = {'net': ema.Average('net', ema.constant(0.9))} if averages is None else averages
  state = init_state(objective, optimizers, averages, batch, jax.random.key(0))
  step = jax.jit(make_train_step(objective, optimizers, averages, **kwargs))
  history = []
  for i in range(steps):
    state, metrics = step(state, {'scale': jnp.float32(scale)}, batch, jax.random.key(i))
    history.append((state, metrics))
  return history


def _value(metric) -> float:
  return float(metric.total / metric.count)


def test_a_step_is_the_gradient_of_the_mean_loss():
  (state, metrics) = _run(optimizer=optax.sgd(0.01))[0]
  x, y = np.asarray(BATCH['image']), np.asarray(BATCH['target'])
  residual = 0.5 * x - 0.25 - y
  grad_w, grad_b = np.mean(2 * residual * x), np.mean(2 * residual)
  np.testing.assert_allclose(state.params['net']['w'], 0.5 - 0.01 * grad_w, rtol=1e-5)
  np.testing.assert_allclose(state.params['net']['b'], -0.25 - 0.01 * grad_b, rtol=1e-5)
  np.testing.assert_allclose(_value(metrics['loss']), np.mean(residual**2), rtol=1e-5)
  np.testing.assert_allclose(_value(metrics['grad_norm']), np.hypot(grad_w, grad_b), rtol=1e-5)
  assert state.step == 1 and state.extra['calls'] == 1
  assert state.params['critic']['c'] == 2.0


@pytest.mark.parametrize('accumulate', [2, 4])
def test_accumulation_equals_the_whole_batch(accumulate):
  whole, whole_metrics = _run(steps=3)[-1]
  parts, parts_metrics = _run(steps=3, accumulate=accumulate)[-1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole.params, parts.params)
  assert parts.extra['calls'] == 3 * accumulate  # extra is handed on from one micro-batch to the next
  for name in ('loss', 'grad_norm', 'mean_input'):
    np.testing.assert_allclose(_value(whole_metrics[name]), _value(parts_metrics[name]), rtol=1e-5)


def test_clipping_limits_the_global_norm():
  (state, metrics) = _run(optimizer=optax.sgd(1.0), clip_norm=0.5)[0]
  moved = np.hypot(state.params['net']['w'] - 0.5, state.params['net']['b'] + 0.25)
  np.testing.assert_allclose(moved, 0.5, rtol=1e-5)
  assert _value(metrics['grad_norm']) > 0.5  # what is logged is the norm before clipping


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad):
  good, _ = _run(steps=1)[0]
  batch = BATCH | {'image': BATCH['image'].at[3, 0].set(bad)}
  objective, optimizers = _objective(), {'net': optax.adamw(0.1), 'critic': optax.sgd(0.5)}
  averages = {'net': ema.Average('net', ema.constant(0.9))}
  step = jax.jit(make_train_step(objective, optimizers, averages))
  frozen = {'scale': jnp.float32(1)}
  once, metrics = step(good, frozen, batch, jax.random.key(1))
  twice, _ = step(once, frozen, batch, jax.random.key(2))
  for name in ('params', 'opt_state', 'ema', 'extra'):
    jax.tree.map(np.testing.assert_array_equal, getattr(good, name), getattr(twice, name))
  assert (once.bad_steps, twice.bad_steps, twice.step) == (1, 2, 3)
  assert _value(metrics['skipped']) == 1 and metrics['loss'].count == 0
  recovered, metrics = step(twice, frozen, BATCH, jax.random.key(3))
  assert recovered.bad_steps == 0 and _value(metrics['skipped']) == 0
  assert recovered.params['net']['w'] != good.params['net']['w']


def test_any_number_of_averages():
  averages = {
    'net': ema.Average('net', ema.constant(0.9)),
    'slow': ema.Average('net', ema.constant(0.99)),
    'critic': ema.Average('critic', ema.constant(0.0)),
  }
  history = _run(steps=3, averages=averages)
  for name, decay in (('net', 0.9), ('slow', 0.99)):
    expected = 0.5
    for state, _ in history:
      expected = decay * expected + (1 - decay) * float(state.params['net']['w'])
    np.testing.assert_allclose(history[-1][0].ema[name]['w'], expected, rtol=1e-6)
  sampled = sampling_params(history[-1][0])
  assert sampled['net']['w'] == history[-1][0].ema['net']['w']
  assert sampled['extra']['calls'] == 3


@pytest.mark.parametrize(
  ('decay', 'step', 'expected'),
  [
    (ema.constant(0.9), 5, 0.9),
    (ema.warmup(0.999), 1, 2 / 11),
    (ema.warmup(0.5), 100, 0.5),
    (ema.half_life(1000, batch_size=10), 7, 2 ** (-10 / 1000)),
    (ema.half_life(1000, batch_size=10, ramp=0.05), 7, 2 ** (-10 / 3.5)),
  ],
)
def test_decays(decay, step, expected):
  np.testing.assert_allclose(decay(jnp.int32(step)), expected, rtol=1e-6)


def test_phases_run_in_order_each_on_its_subtree_and_interval():
  def critic(params, state, frozen, batch, key):
    # Sees the network as the phase before left it, and sends it no gradient.
    return params['critic']['c'] * params['net']['w'], Aux({'seen': params['net']['w']})

  phases = (Phase('net', 'net', _quadratic), Phase('critic', 'critic', critic, every=2))
  history = _run(_objective(*phases), steps=3)
  before = 2.0
  for i, (state, metrics) in enumerate(history):
    ran = i % 2 == 0
    assert float(metrics['critic/loss'].count) == ran
    expected = before - 0.5 * float(state.params['net']['w']) if ran else before
    np.testing.assert_allclose(state.params['critic']['c'], expected, rtol=1e-6)
    if ran:
      np.testing.assert_allclose(_value(metrics['critic/seen']), state.params['net']['w'], rtol=1e-6)
    before = expected
  alone = _run(steps=3)[-1][0]
  jax.tree.map(np.testing.assert_array_equal, alone.params['net'], history[-1][0].params['net'])


def test_each_phase_and_step_draws_its_own_randomness():
  def noisy(params, state, frozen, batch, key):
    return 0.0 * params['net']['w'], Aux({'draw': jax.random.normal(key)})

  phases = (Phase('a', 'net', noisy), Phase('b', 'net', noisy))
  draws = [_value(m[f'{p}/draw']) for _, m in _run(_objective(*phases), steps=2) for p in 'ab']
  assert len(set(draws)) == 4
  parts = _run(_objective(Phase('a', 'net', noisy)), accumulate=4)[0][1]
  expected = [jax.random.normal(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), i)) for i in range(4)]
  np.testing.assert_allclose(_value(parts['draw']), np.mean(expected), rtol=1e-5)


def test_what_does_not_fit_is_refused():
  objective = _objective(Phase('a', 'net', _quadratic), Phase('a', 'net', _quadratic))
  with pytest.raises(ValueError, match='different names'):
    make_train_step(objective, {}, {})
  with pytest.raises(ValueError, match='optimizers are for'):
    init_state(_objective(), {'net': optax.sgd(1.0)}, {}, BATCH, jax.random.key(0))
  optimizers = {'net': optax.sgd(1.0), 'critic': optax.sgd(1.0)}
  with pytest.raises(ValueError, match="average 'x' is of 'missing'"):
    init_state(_objective(), optimizers, {'x': ema.Average('missing', ema.constant(0.9))}, BATCH, jax.random.key(0))
