"""Guidance beyond the classifier-free: each against what its paper says, and in any order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.processes import parameterisation
from jaxgen.processes.process import Prediction, Process, corrupt, image_noise
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import thresholded
from jaxgen.samplers.edm import edm
from jaxgen.samplers.euler import euler
from jaxgen.samplers.guidance import Term, autoguided, classifier_guided, extrapolated, guided, rescaled, zero_star
from tests.analytic import PROCESSES, compiled, gaussian, mixture

MEANS, NULL, VARIANCE = jnp.array([-0.5, 0.5, 0.1]), {'label': 2}, 0.25
LABELS = jnp.array([0, 1, 1, 0])

every_process = pytest.mark.parametrize('process', ['vp_linear', 'vp_cosine_1000', 'rectified_flow'])


def _denoiser(process):
  return gaussian(process, lambda cond: MEANS[cond['label']], VARIANCE)


def _at(process, t=0.6, *, shape=(4, 2, 2, 3)):
  """Arguments of a denoiser: x_t, t, cond."""
  keys = jax.random.split(jax.random.key(0))
  time = jnp.broadcast_to(jnp.float32(t), shape[:1])
  x_t = compiled(partial(corrupt, process), *(jax.random.normal(key, shape) for key in keys), time)
  return jnp.asarray(x_t), time, {'label': LABELS[: shape[0]]}


def _wide(values):
  return np.asarray(values).reshape(-1, 1, 1, 1)


def _consistent(process, prediction, x_t, t, atol=1e-5):
  np.testing.assert_allclose(compiled(partial(corrupt, process), prediction.x0, prediction.eps, t), x_t, atol=atol)


# Negative conditions


def test_a_negative_condition_is_led_away_from():
  process = PROCESSES['rectified_flow']
  base, (x_t, t, cond) = _denoiser(process), _at(process)
  negative = {'label': jnp.array([1, 0, 2, 2])}
  got, good, bad = compiled(
    lambda *args: (guided(base, [Term(negative, 3.0)])(*args), base(*args), base(*args[:2], negative)), x_t, t, cond
  )
  np.testing.assert_allclose(got.x0, good.x0 + 2 * (good.x0 - bad.x0), atol=1e-5)


def test_a_negative_condition_for_each_image_is_kept_by_an_outer_guidance():
  process = PROCESSES['rectified_flow']
  inner = guided(_denoiser(process), [Term({'label': np.array([1, 0, 2, 2])}, 3.0)])
  none = {'label': jnp.full(4, 2)}
  got, good, bad = compiled(
    lambda x_t, t, cond: (guided(inner, [Term(NULL, 2.0)])(x_t, t, cond), inner(x_t, t, cond), inner(x_t, t, none)),
    *_at(process),
  )
  np.testing.assert_allclose(got.x0, 2 * good.x0 - bad.x0, atol=1e-5)


# Autoguidance


@every_process
def test_autoguidance_leads_away_from_a_weaker_network(process):
  """Of two Gaussians with one variance it is a Gaussian with the mean further out."""
  process = PROCESSES[process]
  good, bad, further = (gaussian(process, mean, VARIANCE) for mean in (0.4, 0.1, 0.4 + 1.5 * 0.3))
  x_t, t, cond = _at(process)
  got, want = compiled(lambda *args: (autoguided(good, bad, 2.5)(*args), further(*args)), x_t, t, cond)
  np.testing.assert_allclose(got.x0, want.x0, atol=1e-5)
  np.testing.assert_allclose(got.eps, want.eps, atol=1e-5)
  assert autoguided(good, bad, 1) is good


def test_autoguidance_in_an_interval():
  process = PROCESSES['rectified_flow']
  good, bad = (gaussian(process, mean, VARIANCE) for mean in (0.4, 0.1))
  x_t, _, cond = _at(process)
  t = jnp.array([0.1, 0.3, 0.5, 0.9])
  denoisers = autoguided(good, bad, 3.0, interval=(0.2, 0.6)), autoguided(good, bad, 3.0), good
  got, inside, outside = compiled(lambda *args: [denoise(*args) for denoise in denoisers], x_t, t, cond)
  np.testing.assert_allclose(got.x0[1:3], inside.x0[1:3], atol=1e-6)
  np.testing.assert_allclose(got.x0[::3], outside.x0[::3], atol=1e-6)
  assert np.abs(inside.x0 - outside.x0).max() > 0.01


# Combinations


@every_process
def test_rescaled_guidance_has_the_contrast_of_the_unguided(process):
  process = PROCESSES[process]
  x_t, t, _ = _at(process)
  of_x0 = parameterisation.x0(process)
  good, bad = (lambda x_t, t, cond, c=c: of_x0.predict(jnp.sin(c * x_t), x_t, t) for c in (1.0, 3.0))
  combine = [extrapolated, *(rescaled(process, amount) for amount in (0.0, 0.7, 1.0))]
  denoisers = [good, *(autoguided(good, bad, 4.0, combine=c) for c in combine)]
  unguided, plain, none, some, whole = compiled(lambda *args: [d(*args) for d in denoisers], x_t, t, {})
  std = lambda prediction: np.std(prediction.x0, axis=(1, 2, 3))  # noqa: E731
  assert np.all(std(plain) > 1.5 * std(unguided))
  np.testing.assert_allclose(std(whole), std(unguided), rtol=1e-5)
  np.testing.assert_allclose(none.x0, plain.x0, atol=1e-6)
  np.testing.assert_allclose(some.x0, 0.7 * whole.x0 + 0.3 * plain.x0, atol=1e-5)
  _consistent(process, some, x_t, t)


@every_process
def test_zero_star_fits_the_bad_velocity_to_the_good_one(process):
  """u_w is the projection's remainder, extrapolated: u + (w - 1) (u - s u'), with u - s u' orthogonal to u'."""
  process = PROCESSES[process]
  x_t, t, _ = _at(process)
  space = parameterisation.velocity(process)
  good, bad = (lambda x_t, t, cond, c=c: space.predict(jnp.sin(c * x_t), x_t, t) for c in (1.0, 3.0))
  got = autoguided(good, bad, 4.0, combine=zero_star(process))(x_t, t, {})
  u, u_bad, u_w = np.sin(x_t), np.sin(3 * x_t), np.asarray(space.target(got.x0, got.eps, t))
  s = _wide((u * u_bad).sum((1, 2, 3)) / (u_bad**2).sum((1, 2, 3)))
  np.testing.assert_allclose(u_w, u + 3 * (u - s * u_bad), rtol=1e-3, atol=1e-3)
  _consistent(process, got, x_t, t, atol=1e-4)


def test_zero_init_stands_still_at_first():
  process = PROCESSES['rectified_flow']
  x = jnp.linspace(-1, 1, 8).reshape(2, 2, 2, 1)
  good, bad = (gaussian(process, mean, VARIANCE) for mean in (0.4, 0.1))
  run = lambda share, end: euler(  # noqa: E731
    autoguided(good, bad, 2.0, combine=zero_star(process, share)), process, x, np.linspace(1, end, 11, dtype=np.float32)
  )
  np.testing.assert_allclose(run(0.25, 0.8), x, atol=1e-6)
  assert np.abs(run(0.1, 0.8) - x).max() > 0.01


# Classifier guidance


@every_process
def test_classifier_guidance_by_bayes_is_the_conditional_denoiser(process):
  """Scale 2 of the exact classifier of a mixture's components."""
  process, means = PROCESSES[process], MEANS[:2]
  x_t, t, cond = _at(process, [0.05, 0.4, 0.7, 1.0])

  def log_probability(x_t, t, cond):
    """Of one component of each pixel's mixture, by Bayes' rule."""
    a, d = process.alpha(t), process.alpha(t) ** 2 * VARIANCE + process.sigma(t) ** 2
    wide = lambda c: c.reshape(-1, 1, 1, 1, 1)  # noqa: E731
    logits = -((x_t[..., None] - wide(a) * means.reshape(1, 1, 1, 1, -1)) ** 2) / (2 * wide(d))
    chosen = jax.nn.one_hot(cond['label'], 2).reshape(-1, 1, 1, 1, 2)
    return jnp.sum(jax.nn.log_softmax(logits) * chosen, axis=(1, 2, 3, 4))

  base = mixture(process, means, VARIANCE)
  guide = partial(classifier_guided, base, process, log_probability)
  some = jnp.array([1.0, 2.0, 1.0, 2.0])
  denoisers = guide(2.0), _denoiser(process), guide(some), base
  got, want, each, unguided = compiled(lambda *args: [denoise(*args) for denoise in denoisers], x_t, t, cond)
  np.testing.assert_allclose(got.eps, want.eps, atol=2e-5)
  np.testing.assert_allclose(got.x0[:3], want.x0[:3], atol=5e-5)
  np.testing.assert_allclose(got.x0[3], want.x0[3], atol=5e-3)  # at t = 1, taken a little before
  np.testing.assert_allclose(each.x0[1::2], got.x0[1::2], atol=1e-5)
  np.testing.assert_allclose(each.x0[::2], unguided.x0[::2], atol=1e-5)
  assert np.abs(got.x0 - unguided.x0).max() > 0.1
  assert guide(1.0) is base


# Dynamic thresholding


def test_dynamic_thresholding_scales_an_image_that_leaves_the_range():
  process = PROCESSES['rectified_flow']
  x_t, t, _ = _at(process, shape=(2, 10, 10, 1))
  x0 = jnp.linspace(-1, 1, 100).reshape(1, 10, 10, 1) * jnp.array([0.5, 4.0]).reshape(2, 1, 1, 1)
  denoise = lambda x_t, t, cond: Prediction(x0=x0, eps=(x_t - (1 - t[0]) * x0) / t[0])  # noqa: E731
  got = compiled(thresholded(denoise, process, quantile=0.9), x_t, t, {})
  np.testing.assert_allclose(got.x0[0], x0[0], atol=1e-6)  # inside: as it is
  s = np.quantile(np.abs(x0[1]), 0.9)
  assert 3 < s < 4
  np.testing.assert_allclose(got.x0[1], np.clip(x0[1], -s, s) / s, atol=1e-6)
  _consistent(process, got, x_t, t)
  with pytest.raises(ValueError, match=r'quantile is 99\.5'):
    thresholded(denoise, process, quantile=99.5)


# Together

STEPS = {
  'guided': lambda process: partial(guided, terms=[Term(NULL, 2.0)]),
  'rescaled': lambda process: partial(guided, terms=[Term(NULL, 2.0)], combine=rescaled(process)),
  'zero_star': lambda process: partial(guided, terms=[Term(NULL, 2.0)], combine=zero_star(process)),
  'autoguided': lambda process: partial(autoguided, weak=gaussian(process, 0.0, 0.5), scale=1.5, interval=(0.2, 0.8)),
  'classifier': lambda process: partial(
    classifier_guided,
    process=process,
    log_probability=lambda x_t, t, cond: (
      -jnp.sum((x_t - MEANS[cond['label']].reshape(-1, 1, 1, 1)) ** 2, axis=(1, 2, 3))
    ),
    scale=1.2,
  ),
  'thresholded': lambda process: partial(thresholded, process=process, quantile=0.9, limit=0.3),
}


PAIRS = [(a, list(STEPS)[(i + shift) % len(STEPS)]) for i, a in enumerate(STEPS) for shift in (1, -1)]


@pytest.mark.parametrize(('inner', 'outer'), PAIRS)
def test_neighbours_compose_in_both_orders(inner, outer):
  """The outer one's effect on the inner denoiser is its definition, on a denoiser that stands for the inner one."""
  process = PROCESSES['rectified_flow']
  args = _at(process, shape=(2, 2, 2, 3))
  first = STEPS[inner](process)(_denoiser(process))
  both = STEPS[outer](process)(first)

  def one_by_one(x_t, t, cond):
    """The inner denoiser, called for one image at a time."""
    rows = [first(x_t[i : i + 1], t[i : i + 1], {'label': cond['label'][i : i + 1]}) for i in range(len(t))]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)

  got, want, alone = compiled(
    lambda *args: (both(*args), STEPS[outer](process)(one_by_one)(*args), first(*args)), *args
  )
  np.testing.assert_allclose(got.x0, want.x0, atol=1e-5)
  _consistent(process, got, *args[:2], atol=1e-4)
  assert np.abs(got.x0 - alone.x0).max() > 1e-3


def test_a_learned_variance_is_that_of_the_good_one():
  process = PROCESSES['rectified_flow']
  x_t, t, _ = _at(process)
  good, bad = (lambda x_t, t, cond, c=c: Prediction(x_t, x_t, jnp.full_like(x_t, c)) for c in (0.1, 0.2))
  for combine in (extrapolated, rescaled(process), zero_star(process)):
    np.testing.assert_allclose(autoguided(good, bad, 3.0, combine=combine)(x_t, t, {}).variance, 0.1)


# Grids of noise


@pytest.mark.parametrize('process', ['vp_linear', 'vp_linear_1000', 'rectified_flow'])
def test_grids_of_noise_are_uniform_in_what_they_say(process):
  process, start = PROCESSES[process], 0.98 if process == 'rectified_flow' else 1.0
  level = lambda grid: np.asarray(process.sigma(grid[:-1]) / process.alpha(grid[:-1]))  # noqa: E731
  for grid in (grids.log_snr, grids.karras):
    times = grid(process, 9, start=start, end=0.01)
    assert times.dtype == np.float32
    assert times.shape == (10,)
    np.testing.assert_array_equal(times[[0, -2, -1]], np.float32([start, 0.01, 0]))
    levels = np.log(level(jnp.asarray(times))) if grid is grids.log_snr else level(jnp.asarray(times)) ** (1 / 7)
    np.testing.assert_allclose(np.diff(levels), np.diff(levels).mean(), rtol=1e-3)


def test_karras_is_edms_on_edms_process():
  """With alpha = 1 and sigma = t the times are Eq. 5 of EDM, and its sampler takes noise to the data."""
  process = Process(alpha=jnp.ones_like, sigma=lambda t: 1.0 * t, network_time=lambda t: t)
  times, i = grids.karras(process, 18, start=80.0, end=0.002), np.arange(18)
  want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  np.testing.assert_allclose(times[:-1], want, rtol=1e-5)
  keys = jax.random.split(jax.random.key(0), 2048)

  def sample(keys):
    times = grids.karras(process, 100, start=80.0, end=0.002)  # a grid can be made while a program is traced
    x = 80 * image_noise(keys, (1,))
    return edm(gaussian(process, 0.4, VARIANCE), process, x, times, keys=keys, noise=1.0)

  got = compiled(sample, keys)
  assert abs(got.mean() - 0.4) < 4 * (VARIANCE / 2048) ** 0.5 + 0.005
  assert abs(got.var() / VARIANCE - 1) < 4 * (2 / 2048) ** 0.5 + 0.04


def test_a_grid_of_noise_needs_a_finite_start():
  with pytest.raises(ValueError, match=r'is -inf at start=1\.0'):
    grids.log_snr(PROCESSES['rectified_flow'], 9)
  with pytest.raises(ValueError, match=r'use 2 steps or more and 0 < end < start'):
    grids.karras(PROCESSES['vp_linear'], 9, start=0.5, end=0.7)
