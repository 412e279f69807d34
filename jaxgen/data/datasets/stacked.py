"""Stacked digits: gray images of classes, one in each channel of an image, so that every tuple of classes is a mode.

  x = (x_i, x_j, x_k),   mode = y_i + 10 y_j + 100 y_k,   i, j, k drawn uniformly                       (1)

The test of mode coverage with 1,000 modes, of MNIST's digits (Metz et al. 2017; Srivastava et al. 2017, VEEGAN; Lin et
al. 2018, PacGAN). Nothing is written: records are read from the dataset that is stacked.
"""

from typing import Any

import numpy as np

from jaxgen.data.dataset import Dataset, Record


def stacked(dataset: Dataset, *, num: int = 128_000, seed: int = 0, channels: int = 3) -> Dataset:
  """Eq. 1, of any dataset of gray images with labels.

  Args:
    dataset: dataset whose images are stacked.
    num: images.
    seed: seed of the choice of images.
    channels: number of channels of an image.

  Raises:
    ValueError: the dataset has colours or no labels.
  """
  depth, base = dataset.read(0)['image'].shape[-1], dataset.num_classes
  if depth != 1 or not base:
    raise ValueError(
      f'{dataset.name} has images of {depth} channels and {base} classes; only gray images with labels can be stacked'
    )
  drawn = np.random.default_rng(seed).integers(0, dataset.num_examples, (num, channels), np.int32)

  def decode(index: int) -> Record:
    parts: list[dict[str, Any]] = [dataset.read(int(i)) for i in drawn[index]]
    mode = sum(int(part['label']) * base**place for place, part in enumerate(parts))
    return {'image': np.concatenate([part['image'] for part in parts], axis=-1), 'label': np.int32(mode)}

  return Dataset(
    f'stacked_{dataset.name}',
    dataset.split,
    range(num),
    decode,
    f'{dataset.fingerprint} stacked {num} {channels} {seed}',
    tuple(', '.join(names(mode, dataset.class_names, channels)) for mode in range(base**channels)),
  )


def names(mode: int, class_names: tuple[str, ...], channels: int) -> list[str]:
  """The classes of a mode, channel by channel."""
  return [class_names[mode // len(class_names) ** place % len(class_names)] for place in range(channels)]
