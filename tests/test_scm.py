"""sCM: the tangent is zero on the true path, and the loss follows it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.objectives.few_step.scm import scm, tangent
from jaxgen.processes import parameterisation, trig_flow
from jaxgen.processes.process import corrupt, expand
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step
from tests.analytic import compiled, flow, gaussian, mixture

MEAN, VARIANCE, STD = 0.3, 0.16, 0.5
PROCESS = trig_flow.trig_flow(data_std=STD, time_scale=1.0)
TEACHER = gaussian(PROCESS, MEAN, VARIANCE)


def _exact(seen, t):
  """F of the true f: where the ODE of N(MEAN, VARIANCE) ends."""
  x, a, s = STD * seen, expand(PROCESS.alpha(t), seen), expand(PROCESS.sigma(t), seen)
  end = MEAN + math.sqrt(VARIANCE) * (x - a * MEAN) / jnp.sqrt(a * a * VARIANCE + s * s)
  return (end - a * x) / s


class Exact(nn.Module):
  @nn.compact
  def __call__(self, seen, t, cond, *, train):
    return _exact(seen, t)


def test_trig_flow_is_an_arc_whose_network_sees_data_of_unit_variance():
  t = jnp.linspace(0.01, 0.99, 9)
  assert PROCESS.alpha(jnp.float32(1)) == 0
  np.testing.assert_allclose(PROCESS.alpha(t) ** 2 + (PROCESS.sigma(t) / STD) ** 2, 1, atol=1e-6)
  p = parameterisation.preconditioned(PROCESS, data_std=STD)
  np.testing.assert_allclose(p.scale_input(t), 1 / STD, rtol=1e-5)
  x, output = jnp.ones(9), jnp.full(9, 2.0)
  got = p.predict(output, x, t).x0  # f of Eq. 1
  np.testing.assert_allclose(got, PROCESS.alpha(t) * x + PROCESS.sigma(t) * output, rtol=1e-4)
  drawn = trig_flow.log_normal(-1.0, 1.4, data_std=STD)(jax.random.key(0), 20_000)
  ratio = np.log(STD * np.tan(np.pi / 2 * np.asarray(drawn)))
  np.testing.assert_allclose([ratio.mean(), ratio.std()], [-1.0, 1.4], atol=0.04)


def test_the_tangent_is_the_derivative_of_f_along_the_path():
  """Against finite differences of f, for a function that is nobody's; and zero for the true one."""
  network = lambda x, t: jnp.sin(2 * x + expand(t, x))  # noqa: E731
  t = jnp.linspace(0.1, 0.9, 8)
  x0, eps = jnp.linspace(-1, 1, 8).reshape(8, 1), jnp.linspace(2, -1.5, 8).reshape(8, 1)

  def f(network, t):
    x = corrupt(PROCESS, x0, eps, t)
    return expand(PROCESS.alpha(t), x) * x + expand(PROCESS.sigma(t), x) * network(x, t)

  with jax.enable_x64(True):
    t, x0, eps = (jnp.asarray(np.float64(a)) for a in (t, x0, eps))
    x_t, h = corrupt(PROCESS, x0, eps, t), 1e-5
    got = tangent(network, x_t, t, x0, eps, data_std=STD)[1]
    slope = (f(network, t + h) - f(network, t - h)) / (2 * h) * (2 / math.pi)
    np.testing.assert_allclose(got, expand(PROCESS.alpha(t), x_t) * slope, atol=1e-7)
    on_path = TEACHER(x_t, t, {})
    true = tangent(lambda x, t: _exact(x / STD, t), x_t, t, on_path.x0, on_path.eps, data_std=STD)[1]
    np.testing.assert_allclose(true, 0, atol=1e-9)


def test_exact_steps_land_on_the_data():
  keys = jax.random.split(jax.random.key(0), 4096)
  objective = scm(Exact(), shape=(1, 1, 1), process=PROCESS, sample_times=(1.0, 0.5), limit=None)
  images = compiled(lambda keys: objective.sample({'net': {}}, {}, {}, keys), keys)
  np.testing.assert_allclose([images.mean(), images.var()], [MEAN, VARIANCE], atol=0.02)
  once = scm(Exact(), shape=(1, 1, 1), process=PROCESS, limit=None)
  noise = jnp.linspace(-1, 1, 5).reshape(5, 1)
  want = compiled(lambda x: flow(PROCESS, MEAN, VARIANCE, x, 1.0, 0.0), noise)
  got = once.denoising.denoiser({'net': {}}, {})(noise, jnp.full(5, 1.0), {}).x0
  np.testing.assert_allclose(got, want, atol=1e-4)
  with pytest.raises(ValueError, match='must start at 1 and fall'):
    scm(Exact(), shape=(1, 1, 1), sample_times=(0.5,))


class Small(nn.Module):
  @nn.compact
  def __call__(self, x, t, cond, *, train):
    h = jnp.concatenate([x.reshape(len(x), 1), t[:, None]], 1)
    for _ in range(3):
      h = nn.silu(nn.Dense(64)(h))
    return nn.Dense(1)(h).reshape(x.shape)


@pytest.mark.slow
@pytest.mark.parametrize('distil', [False, True], ids=['training', 'distillation'])
def test_one_step_learns_two_points(distil):
  steps, process = 1500, trig_flow.trig_flow(data_std=0.8, time_scale=1.0)
  data = np.where(np.arange(256) % 2, 0.8, -0.8).astype(np.float32).reshape(-1, 1, 1, 1)
  objective = scm(
    Small(),
    shape=(1, 1, 1),
    process=process,
    data_std=0.8,
    warmup=300,
    teacher=(lambda frozen: mixture(process, (-0.8, 0.8), 1e-4)) if distil else None,
    limit=None,
  )
  optimizers = {'net': optax.adam(optax.cosine_decay_schedule(2e-3, steps))}
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
