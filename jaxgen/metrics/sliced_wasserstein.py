"""MIND, the Monge Inception distance: features compared along random directions, where the optimal transport is a sort.

  (1)  MIND = mean over directions u of W_2^2(u . x, u . y),   u uniform on the unit sphere
  (2)  W_2^2(a, b) = integral from 0 to 1 of (A^-1(q) - B^-1(q))^2 dq       of n sorted values, mean (a_(i) - b_(i))^2

The sliced Wasserstein distance of Bonneel et al. 2015 on features of Inception: Berthet et al. 2026, "MIND: Monge
Inception Distance for Generative Models Evaluation". No covariance is estimated, so that a thousand samples already
tell models apart. Sets of two sizes are compared by their quantiles.

Differs from Berthet et al.: Eq. 1 is not scaled, so numbers here compare with numbers of jaxgen alone.
"""

import numpy as np
from jaxtyping import Float

_AT_ONCE = 128  # directions


def sliced_wasserstein(
  a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm d'], *, directions: int = 1024, seed: int = 0
) -> float:
  """Eq. 1 of two sets of features.

  Args:
    a, b: the features.
    directions: number of directions.
    seed: seed of the directions; two numbers are compared on the same ones.

  Raises:
    ValueError: a set has less than two.
  """
  if min(len(a), len(b)) < 2 or directions < 1:
    raise ValueError(
      f'MIND of {len(a)} and {len(b)} images is not defined; give two of each, and one direction or more'
    )
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  rng, total = np.random.default_rng(seed), 0.0
  for begin in range(0, directions, _AT_ONCE):
    u = rng.standard_normal((a.shape[1], min(_AT_ONCE, directions - begin)))
    u /= np.linalg.norm(u, axis=0)
    total += float(_transport(np.sort(a @ u, axis=0), np.sort(b @ u, axis=0)).sum())
  return total / directions


def _transport(a: Float[np.ndarray, 'n u'], b: Float[np.ndarray, 'm u']) -> Float[np.ndarray, ' u']:
  """Eq. 2 of sorted values: exact, also for two numbers of them."""
  ends = np.union1d(np.arange(1, len(a) + 1) / len(a), np.arange(1, len(b) + 1) / len(b))
  width = np.diff(np.concatenate([[0.0], ends]))
  middle = ends - width / 2
  of_a, of_b = (np.minimum((middle * len(x)).astype(int), len(x) - 1) for x in (a, b))
  return width @ (a[of_a] - b[of_b]) ** 2
