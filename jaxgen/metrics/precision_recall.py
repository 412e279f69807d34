"""Fidelity and diversity by nearest neighbours: precision and recall, density and coverage.

Every point of a set has a ball that reaches to its k-th nearest neighbour in the set. For real points x with radii
r, generated points y with radii s,

  precision = share of y in the ball of any x        (Kynkäänniemi et al. 2019, arXiv:1904.06991)     (1)
  recall    = share of x in the ball of any y                                                         (2)
  density   = mean over y of (number of x whose ball holds y) / k   (Naeem et al. 2020, 2002.09797)   (3)
  coverage  = share of x whose ball holds any y                                                       (4)

Density does not fill up where the balls of outliers reach everywhere, and may exceed 1. A ball is closed in Eqs. 1 and
2 and open in Eqs. 3 and 4, as in their authors' code. Distances are made by blocks: of 50,000 points and 50,000 one
block of float64 is in memory at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_ROWS, _COLUMNS = 1024, 8192  # size of a block of distances


class PrecisionRecall(NamedTuple):
  precision: float
  recall: float


class DensityCoverage(NamedTuple):
  density: float
  coverage: float


def precision_recall(
  real: Float[np.ndarray, 'n d'],
  generated: Float[np.ndarray, 'm d'],
  *,
  neighbours: int = 3,
  real_radii: Float[np.ndarray, ' n'] | None = None,
) -> PrecisionRecall:
  """Eqs. 1 and 2; `real_radii` are those that `squared_radii(real, neighbours)` gave, where they are known.

  Raises:
    ValueError: fewer features than neighbours are asked for.
  """
  _check(real, generated, neighbours)
  real_radii = squared_radii(real, neighbours) if real_radii is None else real_radii
  generated_radii = squared_radii(generated, neighbours)
  precise, recalled = np.zeros(len(generated), bool), np.zeros(len(real), bool)
  for rows, columns, squared in _blocks(generated, real):
    precise[rows] |= (squared <= real_radii[columns]).any(1)
    recalled[columns] |= (squared <= generated_radii[rows, None]).any(0)
  return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


def density_coverage(
  real: Float[np.ndarray, 'n d'],
  generated: Float[np.ndarray, 'm d'],
  *,
  neighbours: int = 5,
  real_radii: Float[np.ndarray, ' n'] | None = None,
) -> DensityCoverage:
  """Eqs. 3 and 4; `real_radii` as for `precision_recall`.

  Raises:
    ValueError: fewer features than neighbours are asked for.
  """
  _check(real, generated, neighbours)
  radii = squared_radii(real, neighbours) if real_radii is None else real_radii
  within, covered = 0, np.zeros(len(real), bool)
  for _, columns, squared in _blocks(generated, real):
    inside = squared < radii[columns]
    within += int(inside.sum())
    covered[columns] |= inside.any(0)
  return DensityCoverage(within / (neighbours * len(generated)), float(covered.mean()))


def two_nearest(
  points: Float[np.ndarray, 'n d'], others: Float[np.ndarray, 'm d']
) -> tuple[Int[np.ndarray, ' n'], Float[np.ndarray, 'n 2']]:
  """The number of each point's nearest among others, and the distances of the nearest and the second."""
  number, least = np.zeros(len(points), np.int64), np.full((len(points), 2), np.inf)
  for rows, columns, squared in _blocks(points, others):
    first = squared.argmin(1)
    value = squared[np.arange(len(first)), first]
    number[rows] = np.where(value < least[rows, 0], first + columns.start, number[rows])
    least[rows] = np.sort(np.partition(np.concatenate([least[rows], squared], axis=1), 1, axis=1)[:, :2], axis=1)
  return number, np.sqrt(np.maximum(least, 0))


def _check(real: np.ndarray, generated: np.ndarray, neighbours: int) -> None:
  if min(len(real), len(generated)) <= neighbours:
    raise ValueError(f'{len(real)} and {len(generated)} samples are too few for {neighbours} neighbours')


def squared_radii(points: Float[np.ndarray, 'n d'], neighbours: int) -> Float[np.ndarray, ' n']:
  """Squared distance to the k-th nearest other point; the point itself is the 0-th."""
  least = np.full((len(points), neighbours + 1), np.inf)
  for rows, _, squared in _blocks(points, points):
    squared = np.concatenate([least[rows], squared], axis=1)
    least[rows] = np.partition(squared, neighbours, axis=1)[:, : neighbours + 1]
  return least.max(1)


def _blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
  """Squared distances by blocks: the rows, the columns, and the block."""
  for start in range(0, len(y), _COLUMNS):
    columns = slice(start, min(start + _COLUMNS, len(y)))
    of_y = np.asarray(y[columns], np.float64)
    norms = (of_y * of_y).sum(1)
    for begin in range(0, len(x), _ROWS):
      rows = slice(begin, min(begin + _ROWS, len(x)))
      of_x = np.asarray(x[rows], np.float64)
      squared = of_x @ of_y.T
      squared *= -2
      squared += (of_x * of_x).sum(1)[:, None]
      squared += norms
      yield rows, columns, squared
