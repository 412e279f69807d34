"""MIND: exact transport in one dimension, and a known value of Gaussians."""

import numpy as np
import pytest
from scipy import stats

from jaxgen.metrics.sliced_wasserstein import sliced_wasserstein


def test_one_dimension_is_exact_whatever_the_sizes():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(6, 1)), rng.normal(size=(4, 1)) + 1
  many = np.sort(np.repeat(a, 4)) - np.sort(np.repeat(b, 6))  # 24 equal shares of each
  assert sliced_wasserstein(a, b, directions=3) == pytest.approx(np.mean(many**2), rel=1e-9)
  assert sliced_wasserstein(a, a[::-1], directions=3) == 0
  shifted = stats.wasserstein_distance(a[:, 0], a[:, 0] + 0.3)
  assert sliced_wasserstein(a, a + 0.3, directions=3) == pytest.approx(shifted**2, rel=1e-9)


def test_of_gaussians_it_is_the_mean_shift_along_directions():
  """W_2^2 of N(0, I) and N(m, s^2 I) along u is (u . m)^2 + (s - 1)^2, whose mean over u is |m|^2 / d + (s - 1)^2."""
  rng, d, n = np.random.default_rng(1), 8, 4000
  m = np.linspace(-1, 1, d)
  a, b = rng.normal(size=(n, d)), 1.5 * rng.normal(size=(n, d)) + m
  assert sliced_wasserstein(a, b, directions=8192) == pytest.approx(np.sum(m**2) / d + 0.25, rel=0.05)


def test_directions_follow_from_the_seed():
  rng = np.random.default_rng(2)
  a, b = rng.normal(size=(50, 6)), rng.normal(size=(50, 6)) * np.linspace(0.2, 2, 6)
  assert sliced_wasserstein(a, b, seed=3) == sliced_wasserstein(a, b, seed=3)
  assert sliced_wasserstein(a, b, seed=3) != sliced_wasserstein(a, b, seed=4)
  with pytest.raises(ValueError, match='is not defined'):
    sliced_wasserstein(a[:0], b)
