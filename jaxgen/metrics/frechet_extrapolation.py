"""FID of infinitely many samples (Chong & Forsyth 2020, arXiv:1911.07023).

FID is biased by the number of samples n, by about c / n with a c of the model, so that models of different c are
ordered wrongly at the same n. A line through FIDs of fewer samples,

  FID(n) = FID(infinity) + c / n                                                                 (1)

gives the value without it. Differs from the paper: subsets are random, not the samples of a Sobol sequence.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.statistics import FeatureStatistics, Moments

LEAST = 1000  # samples of which Eq. 1 holds well enough


class Extrapolation(NamedTuple):
  """FID(infinity), and its standard error from the line's residuals."""

  value: float
  standard_error: float


def frechet_extrapolation(
  generated: Float[np.ndarray, 'n d'], real: Moments, *, points: int = 15, seed: int = 2020
) -> Extrapolation:
  """Eq. 1 by least squares.

  Args:
    generated: features of the samples.
    real: moments of the reference.
    points: sizes of subsets, evenly from a tenth of the samples (5,000 of 50,000, as in the paper) to all.
    seed: seed of the subsets.

  Raises:
    ValueError: too few samples.
  """
  n = len(generated)
  if n < LEAST:
    raise ValueError(f'FID of infinite samples is extrapolated from {LEAST} samples or more, got {n}')
  random = np.random.RandomState(seed)
  sizes = np.linspace(n // 10, n, points).astype(int)
  distances = []
  for size in sizes:
    statistics = FeatureStatistics()
    statistics.update(generated[random.choice(n, size, replace=False)])
    distances.append(frechet_distance(statistics.finalize(), real))
  design = np.stack([np.ones(points), 1 / sizes], axis=1)
  solution, *_ = np.linalg.lstsq(design, np.array(distances), rcond=None)
  residuals = np.array(distances) - design @ solution
  variance = residuals @ residuals / (points - 2) * np.linalg.inv(design.T @ design)[0, 0]
  return Extrapolation(float(solution[0]), float(np.sqrt(variance)))
