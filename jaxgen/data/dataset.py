"""A dataset: records that can be read in any order, and how to decode one.

A source is anything with `len(source)` and `source[i]`: an ArrayRecord data source of TFDS, a list. The loader
asks for records by number, which is what makes the batch of a step a pure function of the step.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.home import home

Record = dict[str, Any]


class BadRecord(ValueError):
  """One record cannot be read; the loader puts another in its place and counts it."""


class Dataset(NamedTuple):
  """One split of a dataset.

  Attributes:
    name: for messages and file names.
    split: as TFDS writes it: 'train', 'test', 'train[:100]', 'train+test'.
    source: random access to raw records.
    decode: raw record to {'image': float32 h w c in [-1, 1]} and, where the dataset has them,
      {'label': int32 scalar, 'caption': str, ...}. A ValueError or OSError says that the record is bad.
    fingerprint: changes whenever a record or the way it is decoded does; a run refuses to resume on another one.
    class_names: the labels' names in order; empty for a dataset without labels.
  """

  name: str
  split: str
  source: Sequence[Any]
  decode: Callable[[Any], Record]
  fingerprint: str
  class_names: tuple[str, ...] = ()

  @property
  def num_examples(self) -> int:
    return len(self.source)

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def read(self, index: int) -> Record:
    """The decoded record at `index`.

    Raises:
      BadRecord: the bytes on disk are damaged.
    """
    try:
      return self.decode(self.source[index])
    except (ValueError, OSError, RuntimeError) as error:
      raise BadRecord(f'record {index} of {self.name} ({self.split}): {error}') from error


def padded(dataset: Dataset, size: int) -> Dataset:
  """The dataset with a border of -1 (black) around its images, of size x size; it is 28x28 that wants 32x32.

  Raises:
    ValueError: an image is larger.
  """
  height, width, _ = dataset.read(0)['image'].shape
  if (height, width) == (size, size):
    return dataset
  if max(height, width) > size:
    raise ValueError(f'{dataset.name} has images of {height}x{width}, which do not fit {size}x{size}; raise resolution')
  before = ((size - height) // 2, (size - width) // 2)
  border = [(first, size - side - first) for first, side in zip(before, (height, width), strict=True)]

  def decode(record: Any) -> Record:
    read = dataset.decode(record)
    return read | {'image': np.pad(read['image'], (*border, (0, 0)), constant_values=-1.0)}

  return dataset._replace(decode=decode, fingerprint=f'{dataset.fingerprint} padded to {size}')


def default_data_dir() -> pathlib.Path:
  """Where prepared datasets live: `data` in $JAXGEN_HOME, else in ~/.cache/jaxgen."""
  return home() / 'data'
