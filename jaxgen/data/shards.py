"""Records of ArrayRecord shards by number, with a bounded number of shards open.

A reader of ArrayRecord keeps about 100 bytes for each record of its shard, and a file handle: all shards of 100 million
records would take 10 GB. Here the shards that were used last stay open, up to `_RECORDS` records, and another one is
opened when it is asked for, which takes about a microsecond for each of its records: datasets that are read in random
order at that size need small shards, as `shard_writer.py` makes them.
"""

import bisect
import collections
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

_RECORDS = 2_000_000  # records of all open shards: about 200 MB
_SHARDS = 256  # open at once: each takes a file handle
_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
_BUFFER = 32768  # bytes that a reader reads at a time
_THREADS = 16


class Part(NamedTuple):
  """The records `first`, ..., `first + num - 1` of a file.

  Attributes:
    path: path of the file.
    first: number of the first record in it.
    num: number of records.
    size: number of all records of the file.
  """

  path: str
  first: int
  num: int
  size: int


class Shards(Sequence):
  """The records of all parts, one after the other, as bytes; safe to read from several threads."""

  def __init__(self, parts: Sequence[Part]):
    self._parts = [part for part in parts if part.num]
    self._ends = list(itertools.accumulate(part.num for part in self._parts))
    self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._records = 0
    self._lock = threading.Lock()
    self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix='jaxgen-shards')

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: Any) -> bytes:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
    """The records of these numbers, in their order; those of one shard are read together."""
    by_part: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
      if not 0 <= index < len(self):
        raise IndexError(f'record {index} of {len(self)}')
      by_part.setdefault(bisect.bisect_right(self._ends, index), []).append(place)
    found: list[bytes] = [b''] * len(indices)

    def read(item: tuple[int, list[int]]) -> None:
      number, places = item
      part = self._parts[number]
      first = self._ends[number] - part.num
      positions = [part.first + int(indices[place]) - first for place in places]
      for place, record in zip(places, self._reader(number).read(positions), strict=True):
        found[place] = record

    if len(by_part) == 1:
      read(next(iter(by_part.items())))
    else:
      list(self._pool.map(read, by_part.items()))
    return found

  def _reader(self, number: int) -> Any:
    """The open reader of a part; whoever still reads from one that is dropped here keeps it until then."""
    with self._lock:
      if number in self._open:
        self._open.move_to_end(number)
        return self._open[number]
    from array_record.python import array_record_module

    part = self._parts[number]
    reader = array_record_module.ArrayRecordReader(part.path, options=_OPTIONS, file_reader_buffer_size=_BUFFER)
    with self._lock:
      if number not in self._open:  # else another thread was first
        self._open[number] = reader
        self._records += part.size
      self._open.move_to_end(number)
      while len(self._open) > 1 and (self._records > _RECORDS or len(self._open) > _SHARDS):
        dropped, _ = self._open.popitem(last=False)
        self._records -= self._parts[dropped].size
    return reader
