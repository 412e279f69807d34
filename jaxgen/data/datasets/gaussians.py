"""Points around a square grid of 25 places: the test of whether a generator covers every mode of its data.

  x = c_ij + s e,   c_ij = 0.4 (i - 2, j - 2),  i, j = 0 ... 4,   e ~ N(0, 1),  s = 0.02                 (1)

A point is an image of one pixel with two channels, in [-1, 1]; its label is the mode. Nothing is read or written: the
records depend on the seed. Used since Dumoulin et al. 2017 and Lin et al. 2018 (PacGAN), with other scales.
"""

import numpy as np
from jaxtyping import Float

from jaxgen.data.dataset import Dataset, NoSuchSplit, Record

SIDE = 5
STD = 0.02
SPLITS = {'train': 0, 'test': 1}


def centres() -> Float[np.ndarray, 'm 2']:
  """The 25 places, in the order of the labels."""
  axis = 0.4 * (np.arange(SIDE) - SIDE // 2)
  return np.stack(np.meshgrid(axis, axis, indexing='ij'), axis=-1).reshape(-1, 2).astype(np.float32)


def gaussians25(split: str = 'train', *, num: int = 100_000, seed: int = 0) -> Dataset:
  """Draws the dataset of Eq. 1.

  Args:
    split: 'train' or 'test', which are independent.
    num: points.
    seed: seed of the points.

  Raises:
    NoSuchSplit: no such split.
  """
  if split not in SPLITS:
    raise NoSuchSplit(f'gaussians25 has no split {split!r}; wanted one of {", ".join(SPLITS)}')
  rng = np.random.default_rng([seed, SPLITS[split]])
  labels = rng.integers(0, SIDE * SIDE, num).astype(np.int32)
  points = centres()[labels] + STD * rng.standard_normal((num, 2), np.float32)

  def decode(index: int) -> Record:
    return {'image': points[index].reshape(1, 1, 2), 'label': labels[index]}

  return Dataset(
    'gaussians25',
    split,
    range(num),
    decode,
    f'gaussians25-1-{split}-{num}-{seed}',
    tuple(str(mode) for mode in range(SIDE * SIDE)),
  )
