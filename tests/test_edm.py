"""EDM's process, preconditioning and training noise, against the formulas of its paper (Karras et al. 2022)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.processes import parameterisation, times
from jaxgen.processes.edm import edm, log_normal
from jaxgen.processes.process import corrupt
from jaxgen.processes.vp import vp_cosine
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
  x0, eps = pair
  ours = parameterisation.preconditioned(process, data_std=1.0).target(x0, eps, T)
  np.testing.assert_allclose(ours, -parameterisation.v(process).target(x0, eps, T), atol=2e-4)


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
