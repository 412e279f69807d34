"""The Fréchet distance of two Gaussians: FID, on Inception features (Heusel et al., 2017, arXiv:1706.08500).

  d = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)                                         (1)
  tr (C1 C2)^(1/2) = sum of the square roots of the eigenvalues of R C2 R^T,  any R^T R = C1   (2)

R C2 R^T is symmetric and has the eigenvalues of C1 C2, so Eq. 2 needs no `sqrtm` of an unsymmetric matrix, with
its imaginary remains. R is a Cholesky factor with pivoting, which finds the rank r of C1 and is r x d: with n
samples r < n, so that a set of few samples makes a small problem, without an error from eigenvalues of zero.
"""

import math

import numpy as np

from jaxgen.metrics.statistics import Moments


def frechet_distance(a: Moments, b: Moments) -> float:
  """Eq. 1, never negative, and 0 for a set with itself; symmetric in its arguments up to rounding.

  Raises:
    ValueError: features of different widths, or that are not finite.
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(f'features have {a.mean.size} and {b.mean.size} numbers; compare those of one network')
  if not all(np.isfinite(part).all() for part in (a.mean, a.cov, b.mean, b.cov)):
    raise ValueError('the statistics hold numbers that are not finite; look at the images they were made of')
  if np.array_equal(a.mean, b.mean) and np.array_equal(a.cov, b.cov):
    return 0.0
  fewer, more = sorted((a, b), key=lambda moments: moments.n or math.inf)
  root = _root(fewer.cov)
  eigenvalues = np.linalg.eigvalsh(root @ more.cov @ root.T)
  overlap = np.sqrt(np.maximum(eigenvalues, 0)).sum()  # Eq. 2
  difference = a.mean - b.mean
  distance = difference @ difference + np.trace(a.cov) + np.trace(b.cov) - 2 * overlap
  return max(float(distance), 0.0)  # rounding may leave -1e-13


def _root(cov: np.ndarray) -> np.ndarray:
  """R of Eq. 2, with as many rows as `cov` has rank."""
  from scipy.linalg import lapack

  factor, fails = lapack.dpotrf(cov)  # pyrefly: ignore[missing-attribute]
  if not fails and factor.diagonal().min() ** 2 > 1e-9 * cov.diagonal().max():
    return factor  # full rank needs no pivots: a fifth of the time
  # pyrefly: ignore[missing-attribute]  (made from Fortran when SciPy is built)
  factor, pivots, rank, _ = lapack.dpstrf(cov, tol=np.finfo(np.float64).eps * cov.diagonal().max())
  root = np.empty((rank, len(cov)))
  root[:, pivots - 1] = np.triu(factor)[:rank]
  return root
