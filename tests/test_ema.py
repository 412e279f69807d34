"""Averages of the parameters: their lengths, and profiles reconstructed after training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import ema

STEPS = 2048


@pytest.fixture(scope='module')
def walk():
  """Parameters that wander: float64 [steps, size]."""
  return np.cumsum(np.random.default_rng(0).standard_normal((STEPS, 16)), axis=0)


def _averages(walk, width, steps):
  """The power function's average of a walk at some steps, by its recursion."""
  decay, value, kept = ema.power(width), np.zeros(walk.shape[1]), {}
  rates = np.asarray(jax.vmap(decay)(jnp.arange(1, STEPS + 1)), np.float64)
  for step, (params, rate) in enumerate(zip(walk, rates, strict=True), start=1):
    value = rate * value + (1 - rate) * params
    if step in steps:
      kept[step] = value.copy()
  return kept


@pytest.mark.parametrize('width', [0.01, 0.05, 0.1, 0.25])
def test_the_weights_of_a_power_average_have_the_width_that_was_asked_for(width):
  weights = _averages(np.eye(STEPS), width, {STEPS})[STEPS]
  place = np.arange(1, STEPS + 1) / STEPS
  mean = np.sum(weights * place)
  np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-5)
  np.testing.assert_allclose(np.sqrt(np.sum(weights * (place - mean) ** 2)), width, rtol=0.02)


def test_exponents_and_widths_are_inverse_and_bounded():
  for width in (0.01, 0.05, 0.1, 0.25, 0.299):
    np.testing.assert_allclose(ema.relative_std(ema.exponent_of(width)), width, rtol=1e-9)
  np.testing.assert_allclose(ema.exponent_of(0.05), 16.97, atol=0.01)  # EDM2, section 3.1
  np.testing.assert_allclose(ema.exponent_of(0.10), 6.94, atol=0.01)
  with pytest.raises(ValueError, match=r'is 0\.31; it must be at most 0\.3'):
    ema.exponent_of(0.31)
  with pytest.raises(ValueError, match='must be positive'):
    ema.power(0.0)


@pytest.mark.parametrize('decay', [-0.1, 1.1, float('nan')])
@pytest.mark.parametrize('make', [ema.constant, ema.warmup])
def test_a_decay_that_is_none_is_refused(make, decay):
  with pytest.raises(ValueError, match=r'it must be in \[0, 1\]'):
    make(decay)


def test_an_inner_product_is_the_integral_of_two_profiles():
  s = (np.arange(200_000) + 0.5) / 200_000 * 9.0

  def profile(step, exponent):
    return np.where(s <= step, (exponent + 1) * s**exponent / step ** (exponent + 1), 0.0)

  for a in ((4.0, 6.9), (9.0, 0.5)):
    for b in ((4.0, 6.9), (7.0, 2.0), (9.0, 17.0)):
      want = np.mean(profile(*a) * profile(*b)) * 9.0
      np.testing.assert_allclose(ema.inner_product(*a, *b), want, rtol=1e-3)


@pytest.mark.parametrize('width', [0.04, 0.07, 0.12])
def test_a_profile_that_was_not_kept_is_reconstructed(walk, width):
  steps = set(range(STEPS // 32, STEPS + 1, STEPS // 32))
  snapshots = [
    ema.Snapshot(step, ema.exponent_of(kept), lambda value=value: {'w': jnp.asarray(value, jnp.float32)})
    for kept in (0.05, 0.10)
    for step, value in _averages(walk, kept, steps).items()
  ]
  step = STEPS * 3 // 4
  want = _averages(walk, width, {step})[step]
  nearest = min(np.abs(np.asarray(s.load()['w']) - want).max() for s in snapshots)
  got = ema.reconstruct(snapshots, step, ema.exponent_of(width))['w']
  error = np.abs(np.asarray(got) - want).max()
  assert error < 0.05 * nearest, (error, nearest)


def test_a_kept_average_is_its_own_reconstruction_and_the_future_is_refused():
  steps, exponents = [100, 200, 200], [6.94, 6.94, 16.97]
  np.testing.assert_allclose(ema.reconstruction_weights(steps, exponents, 200, 16.97), [0, 0, 1], atol=1e-9)
  snapshot = ema.Snapshot(100, 6.94, lambda: {'w': jnp.ones(2)})
  with pytest.raises(ValueError, match='of step 200 was requested, and the last snapshot is of step 100'):
    ema.reconstruct([snapshot], 200, 6.94)
