"""A dataset: records that can be read in any order, and how to decode one.

A source is anything with `len(source)` and `source[i]`: an ArrayRecord data source of TFDS, a list. The loader
asks for records by number, which is what makes the batch of a step a pure function of the step.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


def default_data_dir() -> pathlib.Path:
  """Where prepared datasets live: `data` in $JAXGEN_HOME, else in ~/.cache/jaxgen."""
  return home() / 'data'
