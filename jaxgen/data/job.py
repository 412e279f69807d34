"""Work on a dataset that several processes share: who they are, and originals that any of them can read by number."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxgen.data.dataset import Record


class Job(NamedTuple):
  """The processes that write a dataset together; `distributed.job` makes one of all processes.

  Attributes:
    index: number of this process.
    count: number of processes.
    meet: waits until all have come to a phase of this name, however long they work.
    at: tells the others where this process is.
  """

  index: int
  count: int
  meet: Callable[[str], None]
  at: Callable[[str], None]


ALONE = Job(0, 1, lambda phase: None, lambda where: None)


class Encoded(NamedTuple):
  """An image of a record.

  Attributes:
    pixels: pixels of the image, uint8 h w c.
    png: the same, compressed.
  """

  pixels: np.ndarray
  png: bytes


class Numbered(NamedTuple):
  """The originals of a split, in a dataset that is written shard by shard (shard_writer.py).

  Attributes:
    num: number of originals.
    make: numbers of originals, a sequence for each shard -> the records of each of them, some or none, in order.
    shard: how many originals make a shard; small, since a shard's index is read whenever it is opened.
    blocks: lengths of runs of originals that are read one after the other, such as the row groups of Parquet files:
      the runs are shuffled in place of the originals. Empty where each can be read alone.
  """

  num: int
  make: Callable[[Sequence[Sequence[int]]], Iterator[Sequence[Record]]]
  shard: int = 8192
  blocks: Sequence[int] = ()

  @property
  def shards(self) -> int:
    return -(-self.num // self.shard)
