"""CMMD: the maximum mean discrepancy of CLIP's image features (Jayasumana et al. 2024, arXiv:2401.09603).

  k(x, y) = exp(-|x - y|^2 / (2 sigma^2)),   sigma = 10, features of length 1                    (1)
  CMMD    = 1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y))                                (2)

The means hold every pair, a point with itself too, as in the authors' code: Eq. 2 is never negative, and 0 for a set
with itself.
"""

import numpy as np
from jaxtyping import Float

_SIGMA, _SCALE = 10.0, 1000.0
_ROWS = 2048


def cmmd(a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm d']) -> float:
  """Eq. 2 of two sets of CLIP's image features; they are divided by their lengths here.

  Raises:
    ValueError: a set is empty.
  """
  if not len(a) or not len(b):
    raise ValueError(f'CMMD of {len(a)} and {len(b)} images is not defined; give at least one of each')
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
  return _SCALE * max(_mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b), 0.0)


def _mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
  total, of_y = 0.0, (y * y).sum(1)
  for begin in range(0, len(x), _ROWS):
    part = x[begin : begin + _ROWS]
    squared = (part * part).sum(1)[:, None] + of_y - 2 * part @ y.T
    total += float(np.exp(-np.maximum(squared, 0) / (2 * _SIGMA**2)).sum())  # Eq. 1
  return total / (len(x) * len(y))
