"""Samplers against the updates that were published for them, in float64, on a network that is no Gaussian's."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.processes import parameterisation
from jaxgen.processes.process import Prediction, expand
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.vp import vp_linear
from jaxgen.samplers import clipping, dpm_ancestral, grids
from jaxgen.samplers import euler_maruyama as sde
from jaxgen.samplers import restart as restarts
from jaxgen.samplers.edm import edm
from jaxgen.samplers.heun import heun
from jaxgen.samplers.lms import lms

FLOW = rectified_flow()
X = np.linspace(-1.5, 1.5, 8)[:, None]
NUS = np.array([9.0, 4.0, 1.5, 0.6, 0.25, 0.0])  # sigma/alpha
KEYS = jax.random.split(jax.random.key(0), len(X))


def _data(y, nu):
  """x0 of y = x/alpha with noise nu."""
  return 0.5 * np.sin(2 * y / (1 + nu**2) ** 0.5) + 0.1 * np.log1p(nu)


def _denoise(x_t, t, cond):
  a, s = expand(FLOW.alpha(t), x_t), expand(FLOW.sigma(t), x_t)
  x0 = 0.5 * jnp.sin(2 * x_t / jnp.sqrt(a**2 + s**2)) + 0.1 * jnp.log1p(s / a)
  return parameterisation.x0(FLOW).predict(x0, x_t, t)


def _run(solver, monkeypatch, module=None, z=None):
  """The sample at x/alpha = 9 X, sigma/alpha falling along NUS; `z` is the noise of `step_noise`."""
  if z is not None:
    monkeypatch.setattr(module, 'step_noise', lambda keys, i, x: jnp.asarray(z)[i])
  times = NUS / (1 + NUS)  # rectified flow: nu = t/(1 - t)
  with jax.enable_x64(True):
    run = jax.jit(lambda x: solver(_denoise, FLOW, x, times, keys=KEYS))
    return np.asarray(run(jnp.asarray(9 * X * (1 - times[0]))))


def _ancestral(now, then, eta=1.0):
  up = min(then, eta * (then**2 * (now**2 - then**2) / now**2) ** 0.5)
  return up, (then**2 - up**2) ** 0.5


@pytest.mark.parametrize('eta', [0.0, 0.7])
def test_2s_ancestral(eta, monkeypatch):
  z = np.random.default_rng(0).standard_normal((12, *X.shape))
  y = 9 * X
  for i, (now, then) in enumerate(itertools.pairwise(NUS)):
    up, down = _ancestral(now, then, eta)
    data = _data(y, now)
    if down == 0:
      y = y + (y - data) / now * (0 - now)
      continue
    h = np.log(now / down)
    middle = np.exp(-(-np.log(now) + h / 2))
    inner = middle / now * y - np.expm1(-h / 2) * data
    y = down / now * y - np.expm1(-h) * _data(inner, middle) + up * z[2 * i + 1]
  got = _run(partial(dpm_ancestral.dpm_2s_ancestral, eta=eta), monkeypatch, dpm_ancestral, z)
  np.testing.assert_allclose(got, y, atol=1e-10)


def test_dpm_sde(monkeypatch):
  """Both noises of a step come from one Brownian motion in sigma/alpha."""
  z = np.random.default_rng(0).standard_normal((12, *X.shape))
  y = 9 * X
  for i, (now, then) in enumerate(itertools.pairwise(NUS)):
    data = _data(y, now)
    if then == 0:
      y = data
      continue
    middle = (now * then) ** 0.5
    up, down = _ancestral(now, middle)
    inner = down / now * y - np.expm1(np.log(down / now)) * data + up * z[2 * i]
    up, down = _ancestral(now, then)
    whole = ((now - middle) ** 0.5 * z[2 * i] + (middle - then) ** 0.5 * z[2 * i + 1]) / (now - then) ** 0.5
    y = down / now * y - np.expm1(np.log(down / now)) * _data(inner, middle) + up * whole
  got = _run(dpm_ancestral.dpm_sde, monkeypatch, dpm_ancestral, z)
  np.testing.assert_allclose(got, y, atol=1e-10)


def test_churned_euler(monkeypatch):
  from jaxgen.samplers import edm as module

  z, y = np.random.default_rng(0).standard_normal((12, *X.shape)), 9 * X
  for i, (now, then) in enumerate(itertools.pairwise(NUS)):
    raised = now * (1 + (min(2 / 5, 2**0.5 - 1) if 0.5 <= now <= 5 else 0))
    y = y + 1.1 * (raised**2 - now**2) ** 0.5 * z[i]
    y = y + (y - _data(y, raised)) / raised * (then - raised)
  got = _run(partial(edm, order=1, churn=2.0, nu_min=0.5, nu_max=5.0, noise=1.1), monkeypatch, module, z)
  np.testing.assert_allclose(got, y, atol=1e-10)


@pytest.mark.parametrize('order', [3, 4])
def test_linear_multistep(order, monkeypatch):
  y, past = 9 * X, []
  for i, (now, then) in enumerate(itertools.pairwise(NUS)):
    past = [(y - _data(y, now)) / now, *past][:order]
    for j in range(len(past)):
      nodes = [NUS[i - k] for k in range(len(past))]
      basis = np.poly1d([1.0])
      for k, node in enumerate(nodes):
        basis = basis if k == j else basis * np.poly1d([1.0, -node]) / (nodes[j] - node)
      whole = basis.integ()
      y = y + (whole(then) - whole(now)) * past[j]
  np.testing.assert_allclose(_run(partial(lms, order=order), monkeypatch), y, atol=1e-10)


FORMS = {  # SiT's, whose time goes from noise to data
  sde.linear: lambda t: 1 - t,
  sde.of_sigma: lambda t: 1 - t,
  sde.decreasing: lambda t: 0.25 * (np.cos(np.pi * t) + 1) ** 2,
  sde.increasing_decreasing: lambda t: np.sin(np.pi * t) ** 2,
  sde.constant: lambda t: 1.0,
  sde.of_process: lambda t: (1 - t) ** 2 / t + (1 - t),
}


@pytest.mark.parametrize('form', FORMS)
def test_the_diffusion_coefficients_of_sit(form, monkeypatch):
  z, times = np.random.default_rng(0).standard_normal((5, *X.shape)), NUS / (1 + NUS)
  x = 9 * X * (1 - times[0])
  for i, (t, s) in enumerate(itertools.pairwise(1 - times)):
    data = _data(x / t, (1 - t) / t)
    noise = (x - t * data) / (1 - t)
    w = FORMS[form](t)
    drift = (data - noise) + w * -noise / (1 - t)
    x = x + drift * (s - t) + (2 * w * (s - t)) ** 0.5 * z[i] * (s < 1)
  got = _run(partial(sde.euler_maruyama, diffusion=form), monkeypatch, sde, z)
  np.testing.assert_allclose(got, x, atol=1e-10)


def test_a_restart_goes_back_and_down_again(monkeypatch):
  z = np.random.default_rng(0).standard_normal((2, *X.shape))
  y, inner, nus = 9 * X, np.array([4.0, 2.0, 0.6]), NUS

  def down(y, nus):
    for now, then in itertools.pairwise(nus):
      slope = (y - _data(y, now)) / now
      other = y + (then - now) * slope
      y = y + (then - now) * (slope + (other - _data(other, then)) / then) / 2 if then else other
    return y

  y = down(y, nus[:4])
  for each in z:
    y = down(y + (inner[0] ** 2 - inner[-1] ** 2) ** 0.5 * each, inner)
  y = down(y, nus[3:])
  monkeypatch.setattr(restarts, 'step_noise', lambda keys, i, x: jnp.asarray(z)[i])
  ve = FLOW._replace(alpha=jnp.ones_like, sigma=lambda t: 1.0 * t)

  def denoise(x_t, t, cond):
    nu = expand(t, x_t)
    x0 = 0.5 * jnp.sin(2 * x_t / jnp.sqrt(1 + nu**2)) + 0.1 * jnp.log1p(nu)
    return Prediction(x0, (x_t - x0) / nu)

  solver = restarts.restart(heun, [restarts.Interval(np.float32(inner), 2)])
  with jax.enable_x64(True):
    got = jax.jit(lambda x: solver(denoise, ve, x, np.float32(nus), keys=KEYS))(jnp.asarray(9 * X))
  np.testing.assert_allclose(got, y, atol=1e-6)  # times in float32


def test_a_restart_that_the_grid_does_not_meet_is_refused():
  solver = restarts.restart(heun, [restarts.Interval(np.array([0.5, 0.3]))])
  with pytest.raises(ValueError, match=r'the restart at 0\.3 is at none of the times'):
    solver(_denoise, FLOW, jnp.ones((8, 1)), grids.uniform(2), keys=KEYS)


def test_eps_can_stay_the_networks_where_x0_is_clipped():
  process = vp_linear(1000)
  denoise = lambda x, t, cond: Prediction(2 * x, 3 * x)  # noqa: E731
  x, t = jnp.array([[0.2], [-1.0]]), jnp.full(2, 0.5)
  kept, follows = (clipping.clipped(denoise, process, keep_eps=keep)(x, t, {}) for keep in (True, False))
  np.testing.assert_allclose(kept.x0, [[0.4], [-1.0]], rtol=1e-6)
  np.testing.assert_allclose(kept.eps, 3 * x)
  a, s = process.alpha(t)[:, None], process.sigma(t)[:, None]
  np.testing.assert_allclose(follows.eps, (x - a * follows.x0) / s, rtol=1e-6)


def test_thresholding_has_a_largest_scale():
  """diffusers' sample_max_value: s is held in [1, most], and the image clipped to [-s, s] and divided by s."""
  denoise = lambda x, t, cond: Prediction(x, x)  # noqa: E731
  x = jnp.array([[0.5, 3.0], [0.1, 1.2]])
  got = clipping.thresholded(denoise, FLOW, quantile=1.0, most=1.5)(x, jnp.full(2, 0.5), {}).x0
  np.testing.assert_allclose(got, [[0.5 / 1.5, 1.0], [0.1 / 1.2, 1.0]], rtol=1e-6)
  with pytest.raises(ValueError, match=r'most is 0\.5'):
    clipping.thresholded(denoise, FLOW, most=0.5)


def test_the_boundary_of_lcm_and_its_target():
  """Luo et al. 2023: c_skip = d^2/((10 k)^2 + d^2), c_out = 10 k/sqrt((10 k)^2 + d^2), k the network's time."""
  process = vp_linear(1000)
  space = parameterisation.boundary(parameterisation.eps)(process)
  x_t, eps, t = jnp.array([[0.7], [0.3]]), jnp.array([[0.2], [-0.4]]), jnp.array([0.001, 0.002])
  a, s = process.alpha(t)[:, None], process.sigma(t)[:, None]
  k = np.array([[0.0], [10.0]])
  skip, out = 0.25 / (k**2 + 0.25), k / np.sqrt(k**2 + 0.25)
  prediction = space.predict(eps, x_t, t)
  np.testing.assert_allclose(prediction.x0, skip * x_t + out * (x_t - s * eps) / a, rtol=1e-5)
  np.testing.assert_allclose(prediction.x0[0], x_t[0], rtol=1e-6)
  target = space.target(prediction.x0[1:], prediction.eps[1:], t[1:])
  np.testing.assert_allclose(target, eps[1:], rtol=1e-3)
