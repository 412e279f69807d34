"""Memorisation: are samples copies of training images? (Yoon et al. 2023; Somepalli et al. 2023, arXiv:2212.03860)

A copy is far nearer to one training image than to the second nearest:

  ratio(y) = |y - x_1| / |y - x_2|,   x_1 and x_2 the training images nearest to y               (1)

A sample counts as a copy below 1/3. Copies of images that the training set holds twice have a ratio of 1 and are not
found; look at the smallest distances too.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxgen.metrics.precision_recall import two_nearest

THRESHOLD = 1 / 3


class Memorisation(NamedTuple):
  """How close samples are to training images.

  Attributes:
    share: samples whose ratio is below the threshold.
    ratios: Eq. 1 of each sample.
    nearest: number of each sample's nearest training image.
    distances: distances to that image.
  """

  share: float
  ratios: Float[np.ndarray, ' n']
  nearest: Int[np.ndarray, ' n']
  distances: Float[np.ndarray, ' n']


def memorisation(
  training: Float[np.ndarray, 'm d'], generated: Float[np.ndarray, 'n d'], *, threshold: float = THRESHOLD
) -> Memorisation:
  """Eq. 1 for every sample.

  Raises:
    ValueError: fewer than two training images, or no sample.
  """
  if len(training) < 2 or not len(generated):
    raise ValueError(f'{len(training)} training images and {len(generated)} samples are too few to detect copies')
  number, distances = two_nearest(generated, training)
  ratios = np.where(distances[:, 1] > 0, distances[:, 0] / np.maximum(distances[:, 1], 1e-300), 1.0)
  return Memorisation(float(np.mean(ratios < threshold)), ratios, number, distances[:, 0])
