"""Noise in the place of a dataset that is not here: to plan a run, or to time its step, before its data is prepared."""

import numpy as np

from jaxgen.data.dataset import Dataset, Record

_RECORDS = 1024


def synthetic(shape: tuple[int, int, int], *, num_classes: int = 0) -> Dataset:
  """Images of standard normal noise with labels in turn; record i is a function of i."""

  def decode(index: int) -> Record:
    image = np.random.default_rng(index).standard_normal(shape, np.float32)
    return {'image': image} | ({'label': np.int32(index % num_classes)} if num_classes else {})

  names = tuple(map(str, range(num_classes)))
  return Dataset('synthetic', 'train', range(_RECORDS), decode, f'synthetic {shape} {num_classes}', names)
