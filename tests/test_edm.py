"""EDM's process, preconditioning and training noise, against the formulas of its paper (Karras et al. 2022)."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from configs import cifar10_edm, emoji_edm
from jaxgen.processes import parameterisation, times
from jaxgen.processes.edm import edm, log_normal
from jaxgen.processes.process import corrupt
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import edm as edm_sampler
from jaxgen.samplers import grids
from jaxgen.samplers.sampler import Sampler
from tests.analytic import compiled

STD = 0.5
T = jnp.linspace(0.01, 0.99, 16)


@pytest.fixture(scope='module')
def pair():
  """Data of standard deviation 0.5, and noise."""
  draw = np.random.default_rng(0).standard_normal((2, 16, 32, 32, 3)).astype(np.float32)
  return jnp.asarray(STD * draw[0]), jnp.asarray(draw[1])


def test_a_uniform_grid_of_time_is_the_papers_grid_of_noise():
  n, low, high = 18, 0.002 ** (1 / 7), 80.0 ** (1 / 7)
  i = np.arange(n)
  want = (high + i / (n - 1) * (low - high)) ** 7  # Eq. 5
  process = edm()
  np.testing.assert_allclose(process.sigma(jnp.asarray(1 - i / (n - 1), jnp.float32)), want, rtol=2e-4)
  np.testing.assert_allclose(process.network_time(jnp.float32(1.0)), np.log(80) / 4, rtol=1e-5)
  assert float(process.alpha(jnp.float32(0.3))) == 1


def test_preconditioning_has_the_papers_coefficients(pair):
  process = edm()
  precondition = parameterisation.preconditioned(process, data_std=STD)
  x0, eps = pair
  s = np.asarray(process.sigma(T), np.float64).reshape(-1, 1, 1, 1)
  x_t = corrupt(process, x0, eps, T)
  output = jnp.flip(eps, 0)
  got = compiled(lambda output, x_t: precondition.predict(output, x_t, T).x0, output, x_t)
  skip, out = STD**2 / (s**2 + STD**2), s * STD / np.sqrt(s**2 + STD**2)  # Table 1
  np.testing.assert_allclose(got, skip * x_t + out * output, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(precondition.scale_input(T), 1 / np.sqrt(s**2 + STD**2).ravel(), rtol=1e-5)


def test_what_the_network_sees_and_learns_has_variance_one(pair):
  process, (x0, eps) = edm(), pair
  precondition = parameterisation.preconditioned(process, data_std=STD)
  seen = precondition.scale_input(T).reshape(-1, 1, 1, 1) * corrupt(process, x0, eps, T)
  target = compiled(lambda x0, eps: precondition.target(x0, eps, T), *pair)
  for array in (seen, target):
    np.testing.assert_allclose(np.var(array, axis=(1, 2, 3)), 1, rtol=0.1)


def test_of_vp_and_unit_data_it_is_minus_v(pair):
  process = vp_cosine()
  spaces = parameterisation.preconditioned(process, data_std=1.0), parameterisation.v(process)
  ours, v = compiled(lambda x0, eps: [space.target(x0, eps, T) for space in spaces], *pair)
  np.testing.assert_allclose(ours, -v, atol=2e-4)


def test_the_network_sees_scaled_input(pair):
  process, seen = edm(), []
  precondition = parameterisation.preconditioned(process, data_std=STD)

  def apply(x, t, cond):
    seen.append(x)
    return jnp.zeros_like(x)

  x0, eps = pair
  x_t = corrupt(process, x0, eps, T)
  prediction = parameterisation.denoiser(apply, process, partial(parameterisation.preconditioned, data_std=STD))(
    x_t, T, {}
  )
  np.testing.assert_allclose(seen[0], precondition.scale_input(T).reshape(-1, 1, 1, 1) * x_t, rtol=1e-6)
  s = np.asarray(process.sigma(T)).reshape(-1, 1, 1, 1)
  np.testing.assert_allclose(prediction.x0, STD**2 / (s**2 + STD**2) * x_t, rtol=1e-3, atol=1e-6)


def test_training_noise_is_log_normal():
  process = edm()
  t = log_normal(-1.2, 1.2, draw=times.stratified)(jax.random.key(0), 4096)
  logs = np.log(np.asarray(process.sigma(t)))
  np.testing.assert_allclose([logs.mean(), logs.std()], [-1.2, 1.2], atol=0.02)
  assert 0 <= float(t.min()) < float(t.max()) <= 1


def test_impossible_bounds_are_refused():
  with pytest.raises(ValueError, match='wanted 0 < sigma_min < sigma_max'):
    edm(sigma_min=1.0, sigma_max=0.5)


def _algorithm_2(denoise, z, x, *, churn, s_min, s_max, noise, steps=18):
  """Karras et al. 2022, Algorithm 2 (1 without churn), in float64: the sample and the number of network calls."""
  low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
  sigmas = np.append((high + np.arange(steps) / (steps - 1) * (low - high)) ** 7, 0)
  x, calls = np.float64(x) * sigmas[0], 0
  for i, (now, then) in enumerate(itertools.pairwise(sigmas)):
    gamma = min(churn / steps, 2**0.5 - 1) if s_min <= now <= s_max else 0
    raised = now + gamma * now
    x = x + (raised**2 - now**2) ** 0.5 * noise * z[i]
    slope = (x - denoise(x, raised)) / raised
    x_s, calls = x + (then - raised) * slope, calls + 1
    if then:
      x_s, calls = x + (then - raised) * (slope + (x_s - denoise(x_s, then)) / then) / 2, calls + 1
    x = x_s
  return x, calls


def _data(x, sigma):
  """A network's x0, smooth in both."""
  return 0.5 * np.sin(2 * x / (1 + sigma**2) ** 0.5) + 0.1 * np.log1p(sigma)


def _sampled(sampler, process, x, monkeypatch, z=None):
  calls, of_x0 = [], parameterisation.x0(process)
  for module in [edm_sampler] if z is not None else []:
    monkeypatch.setattr(module, 'step_noise', lambda keys, i, x: jnp.asarray(z)[i])

  def denoise(x_t, t, cond):
    io_callback(lambda: calls.append(1), None, ordered=True)
    sigma = process.sigma(t).reshape(-1, 1)
    return of_x0.predict(0.5 * jnp.sin(2 * x_t / (1 + sigma**2) ** 0.5) + 0.1 * jnp.log1p(sigma), x_t, t)

  keys = jax.random.split(jax.random.key(0), len(x))
  run = jax.jit(lambda x: sampler.solve(denoise, process, process.sigma(jnp.float32(1)) * x, sampler.times, keys=keys))
  got = np.asarray(run(jnp.asarray(x)))
  jax.effects_barrier()
  return got, len(calls)


@pytest.mark.parametrize('config', [cifar10_edm, emoji_edm])
def test_the_configs_sample_as_the_paper_does(config, monkeypatch):
  """The sampler that the config hands to its model, against Algorithm 1."""
  c = config.get_config()
  c.sampling.steps, c.fid.num_samples = 18, 0
  c.dataset = 'synthetic' if config is cifar10_edm else c.dataset
  objective = config.build(c).objective
  x = np.random.default_rng(0).standard_normal((64, 1))
  with jax.enable_x64(True):
    got, calls = _sampled(objective.denoising.sampler, objective.denoising.process({}), x, monkeypatch)
  want, wanted_calls = _algorithm_2(_data, np.zeros(18), x, churn=0, s_min=0, s_max=1e9, noise=1)
  assert calls == wanted_calls == 35
  np.testing.assert_allclose(got, want, atol=3e-5)  # the times are float32, which sigma takes to the power of 7


@pytest.mark.parametrize('s_min', [0.0, 0.05])
def test_the_sampler_with_churn_follows_the_papers_algorithm(s_min, monkeypatch):
  draw = np.random.default_rng(0)
  x, z = draw.standard_normal((64, 1)), draw.standard_normal((18, 64, 1))
  options = {'churn': 40.0, 'noise': 1.003}
  solve = partial(edm_sampler.edm, nu_min=s_min, nu_max=50.0, **options)
  with jax.enable_x64(True):
    got, calls = _sampled(Sampler(solve, grids.uniform(17)), edm(), x, monkeypatch, z)
  want, wanted_calls = _algorithm_2(_data, z, x, s_min=s_min, s_max=50.0, **options)
  assert calls == wanted_calls == 35
  np.testing.assert_allclose(got, want, atol=3e-5)
