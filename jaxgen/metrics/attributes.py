"""Attribute accuracy: the share of requested attributes that a classifier finds in the images.

  (1)  accuracy = right / known,  over all (image, attribute) of the truth (-1: not known)
  (2)  chance   = the same for a guess of each attribute's most common value

Beside a number stands the classifier's accuracy on real images, which samples cannot be expected to pass.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Attributes = Int[np.ndarray, 'n a']


class Accuracy(NamedTuple):
  """Shares of attributes that are right.

  Attributes:
    overall: Eq. 1.
    by_name: Eq. 1 of each attribute that the truth has.
    chance: Eq. 2.
  """

  overall: float
  by_name: dict[str, float]
  chance: float


def accuracy(predicted: Attributes, truth: Attributes, *, names: Sequence[str]) -> Accuracy:
  """Compares the output of a classifier with the requested attributes.

  Args:
    predicted: a value for each attribute.
    truth: the values that the prompt names, -1 where it leaves an attribute open or cannot be seen.
    names: names of the attributes.

  Raises:
    ValueError: the shapes differ, or the truth has no attribute.
  """
  predicted, truth = np.asarray(predicted), np.asarray(truth)
  if predicted.shape != truth.shape or truth.shape[1:] != (len(names),):
    raise ValueError(f'predicted {predicted.shape} and true {truth.shape} attributes, and {len(names)} names')
  known = truth >= 0
  if not known.any():
    raise ValueError('the truth has no attribute of any image')
  right = (predicted == truth) & known
  shown = [i for i in range(len(names)) if known[:, i].any()]
  commonest = sum(int(np.bincount(truth[known[:, i], i]).max()) for i in shown)
  return Accuracy(
    overall=float(right.sum() / known.sum()),
    by_name={names[i]: float(right[:, i].sum() / known[:, i].sum()) for i in shown},
    chance=float(commonest / known.sum()),
  )
