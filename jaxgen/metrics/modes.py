"""Mode coverage: how many modes of known data a generator's samples reach, and how evenly.

With n samples, of which n_m are of mode m (and some of none), and M modes:

  (1)  covered = number of m with n_m >= share * n / M
  (2)  quality = sum_m n_m / n
  (3)  kl = sum_m p_m log(M p_m),  p_m = n_m / sum n_m        to the uniform distribution, in nats

A sample belongs to a mode by its distance from the mode's centre, or by a classifier: images whose three channels are
digits of their own ("stacked digits", Metz et al. 2017) have 1,000 modes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Coverage(NamedTuple):
  """Eqs. 1 to 3."""

  covered: int
  quality: float
  kl: float


def nearest_mode(
  points: Float[np.ndarray, 'n d'], centres: Float[np.ndarray, 'm d'], *, radius: float
) -> Int[np.ndarray, ' n']:
  """The mode of each point: the nearest centre, or -1 beyond `radius`."""
  distance = np.sqrt(((points[:, None] - centres[None]) ** 2).sum(axis=-1))
  return np.where(distance.min(axis=1) <= radius, distance.argmin(axis=1), -1)


def stacked_mode(digits: Int[np.ndarray, 'n k'], *, base: int = 10) -> Int[np.ndarray, ' n']:
  """The mode of images by what a classifier says of each of their k channels."""
  return (digits * base ** np.arange(digits.shape[1])).sum(axis=1)


def coverage(modes: Int[np.ndarray, ' n'], *, num_modes: int, share: float = 0.1) -> Coverage:
  """Counts.

  Args:
    modes: modes of each sample; -1 for none.
    num_modes: M.
    share: share of its fair part that a mode needs to count as covered; 0 asks for a single sample.
  """
  counts = np.bincount(modes[modes >= 0], minlength=num_modes)
  reached = counts.sum()
  least = max(share * len(modes) / num_modes, 1)
  p = counts[counts > 0] / max(reached, 1)
  kl = float((p * np.log(num_modes * p)).sum()) if reached else float('inf')
  return Coverage(int((counts >= least).sum()), float(reached / len(modes)), kl)
