"""Mean and covariance of features, accumulated on the host in float64.

Batches are merged by the update of Chan, Golub & LeVeque (1979), which cancels nothing: for two sets of n and m
features with means a, b and scatter matrices A, B (sums of squared deviations from their own mean),

  mean    = a + (b - a) m / (n + m)                                                            (1)
  scatter = A + B + (b - a)(b - a)^T n m / (n + m)                                             (2)

so the result is the same to about 1e-12 however the features were split into batches.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
  """The moments of a set of features that the Fréchet distance needs."""

  n: int | None  # unknown in statistics from elsewhere
  mean: Float[np.ndarray, 'd']
  cov: Float[np.ndarray, 'd d']  # unbiased


class FeatureStatistics:
  """A running count, mean and scatter matrix."""

  def __init__(self) -> None:
    self.n = 0
    self.mean = self.scatter = np.zeros(0)  # no features yet; the first batch decides their width

  def update(self, features: Float[np.ndarray, 'b d']) -> None:
    """Takes in a batch of any size."""
    features = np.asarray(features, np.float64)
    if not len(features):
      return
    n, mean = len(features), features.mean(0)
    centred = features - mean
    scatter = centred.T @ centred
    if self.n:
      total, delta = self.n + n, mean - self.mean
      scatter += self.scatter + np.outer(delta, delta * (self.n * n / total))  # Eq. 2
      mean = self.mean + delta * (n / total)  # Eq. 1
    self.n, self.mean, self.scatter = self.n + n, mean, scatter

  def finalize(self) -> Moments:
    """The moments of everything seen.

    Raises:
      ValueError: fewer than two features, of which there is no covariance.
    """
    if self.n < 2:
      raise ValueError(f'the covariance of {self.n} features is not defined; give at least 2 images')
    return Moments(self.n, self.mean, self.scatter / (self.n - 1))
