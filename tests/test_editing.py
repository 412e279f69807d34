"""Editing with noise: on Gaussians the edited distribution is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.generation.edit import sdedit
from jaxgen.generation.inpaint import repaint
from jaxgen.generation.interpolate import slerp
from jaxgen.processes.process import Prediction
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from tests.analytic import PROCESSES, compiled, gaussian

PROCESS = PROCESSES['vp_cosine']
MEAN, VARIANCE, RHO = 0.3, 0.25, 0.8


def _keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def _pair(x_t, t, cond):
  """The denoiser of two pixels, N(0, [[1, RHO], [RHO, 1]])."""
  turn = jnp.asarray([[1.0, 1.0], [1.0, -1.0]]) / jnp.sqrt(2.0)
  variances = jnp.asarray([[1 + RHO, 1 - RHO]])
  a, s = PROCESS.alpha(t)[:, None], PROCESS.sigma(t)[:, None]
  z = x_t.reshape(-1, 2) @ turn / (a * a * variances + s * s)
  back = lambda z: (z @ turn).reshape(x_t.shape)  # noqa: E731
  return Prediction(x0=back(a * variances * z), eps=back(s * z))


@pytest.mark.parametrize('strength', [0.25, 0.625])
def test_sdedit_follows_the_path_back_from_its_noise(strength):
  """Of a Gaussian: the correlation with the image edited is what the noise left, and the distribution is the data's."""
  x0 = MEAN + np.sqrt(VARIANCE) * np.random.default_rng(0).standard_normal((4096, 1, 1, 1)).astype(np.float32)
  run = partial(sdedit, euler, gaussian(PROCESS, MEAN, VARIANCE), PROCESS, times=grids.uniform(200), strength=strength)
  edited = compiled(lambda x0, keys: run(x0, keys=keys), x0, _keys(4096))
  a, s = float(PROCESS.alpha(jnp.float32(strength))), float(PROCESS.sigma(jnp.float32(strength)))
  want = a * np.sqrt(VARIANCE) / np.sqrt(a * a * VARIANCE + s * s)
  np.testing.assert_allclose(np.corrcoef(x0.ravel(), edited.ravel())[0, 1], want, atol=0.03)
  np.testing.assert_allclose([edited.mean(), edited.var()], [MEAN, VARIANCE], atol=0.03)


def test_sdedit_starts_exactly_at_its_strength():
  seen = []

  def sampler(denoise, process, x, times, *, cond=None, keys=None):
    seen.append(times)
    return x

  sdedit(sampler, _pair, PROCESS, jnp.zeros((1, 1, 2, 1)), grids.uniform(4), strength=0.6, keys=_keys(1))
  np.testing.assert_allclose(seen[0], [0.6, 0.5, 0.25, 0], atol=1e-6)
  for strength in (0.0, 1.5):
    with pytest.raises(ValueError, match='it is a time, more than 0 and at most 1'):
      sdedit(sampler, _pair, PROCESS, jnp.zeros((1, 1, 2, 1)), grids.uniform(4), strength=strength, keys=_keys(1))


@pytest.mark.slow
def test_repaint_keeps_what_is_known_and_repeats_draw_the_rest_given_it():
  n = 1024
  known = jnp.asarray(np.random.default_rng(1).standard_normal((n, 1, 1, 1)), jnp.float32)
  known = jnp.concatenate([known, jnp.full_like(known, 77.0)], axis=2)
  mask = jnp.broadcast_to(jnp.asarray([1.0, 0.0]).reshape(1, 1, 2, 1), known.shape)
  noise = jax.random.normal(jax.random.key(2), known.shape)
  error = {}
  for repeats in (1, 6):
    run = partial(repaint, _pair, PROCESS, times=grids.uniform(30), mask=mask, repeats=repeats)
    filled = compiled(lambda x, known, keys, run=run: run(x, known=known, keys=keys), noise, known, _keys(n))
    given, drawn = filled[:, 0, 0, 0], filled[:, 0, 1, 0]
    np.testing.assert_allclose(given, known[:, 0, 0, 0], atol=1e-5)
    slope = (given * drawn).mean() / (given * given).mean()
    error[repeats] = abs(slope - RHO)
  assert error[6] < 0.08
  assert error[1] > 2 * error[6]
  np.testing.assert_allclose((drawn - slope * given).var(), 1 - RHO**2, atol=0.12)  # few steps of the small variance
  with pytest.raises(ValueError, match='at least once'):
    repaint(_pair, PROCESS, noise, grids.uniform(2), known=known, mask=mask, keys=_keys(n), repeats=0)


def test_slerp_keeps_the_length_of_noise():
  a, b = np.random.default_rng(3).standard_normal((2, 4, 16, 16, 3)).astype(np.float32)
  middle = compiled(lambda a, b: slerp(a, b, 0.5), a, b)
  np.testing.assert_allclose(middle.std(), 1, atol=0.03)  # 0.71 of a straight mix
  ends = compiled(lambda a, b: (slerp(a, b, 0.0), slerp(a, b, 1.0), slerp(a, a, 0.3)), a, b)
  for got, want in zip(ends, (a, b, a), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-4)
  each = compiled(lambda a, b: slerp(a, b, jnp.asarray([0.0, 1.0, 0.0, 1.0])), a, b)
  np.testing.assert_allclose(each[::2], a[::2], atol=1e-4)
  np.testing.assert_allclose(each[1::2], b[1::2], atol=1e-4)
