"""Improved precision and recall (Kynkäänniemi et al., 2019, arXiv:1904.06991).

A set of features covers the balls around each of its points that reach to its k-th nearest neighbour in the set.
Precision is the share of generated features that the real ones cover (fidelity); recall is the share of real
features that the generated ones cover (diversity).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_ROWS = 2048  # distances are computed for this many points at a time


class PrecisionRecall(NamedTuple):
  precision: float
  recall: float


def precision_recall(
  real: Float[np.ndarray, 'n d'], generated: Float[np.ndarray, 'm d'], *, neighbours: int = 3
) -> PrecisionRecall:
  """Both shares, in [0, 1].

  Raises:
    ValueError: fewer features than neighbours are asked for.
  """
  if min(len(real), len(generated)) <= neighbours:
    raise ValueError(f'{len(real)} and {len(generated)} samples are too few for {neighbours} neighbours')
  real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
  return PrecisionRecall(
    precision=_covered(generated, real, _radii(real, neighbours)),
    recall=_covered(real, generated, _radii(generated, neighbours)),
  )


def _radii(points: np.ndarray, neighbours: int) -> np.ndarray:
  """Squared distance to the k-th nearest other point; the point itself is the 0-th."""
  return np.concatenate(
    [
      np.partition(_squared_distances(points[i : i + _ROWS], points), neighbours, axis=1)[:, neighbours]
      for i in range(0, len(points), _ROWS)
    ]
  )


def _covered(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> float:
  inside = [(_squared_distances(points[i : i + _ROWS], centres) <= radii).any(1) for i in range(0, len(points), _ROWS)]
  return float(np.concatenate(inside).mean())


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return (x * x).sum(1)[:, None] - 2 * x @ y.T + (y * y).sum(1)[None]
