"""Reads decoded records with a pool of threads, and deals with the ones that are damaged."""

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from jaxgen.data.dataset import BadRecord, Dataset, Record, check_record, read_raw

T = TypeVar('T')
Transform = Callable[[Record, np.random.Generator], Record]


class Reader:
  """Records of a dataset by number, as arrays only.

  Decoding and reading leave Python's lock, so threads are enough; there are no worker processes to start, to feed
  and to outlive a killed run. The arguments are described at `Loader`.
  """

  def __init__(
    self,
    dataset: Dataset,
    *,
    transform: Transform | None,
    cache: bool,
    threads: int | None,
    max_bad_records: int,
  ):
    if not dataset.num_examples:
      raise ValueError(f'{dataset.name} has no records in split {dataset.split!r}')
    self._dataset, self._transform = dataset, transform
    self._threads = threads or min(os.cpu_count() or 1, 16)
    self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix='jaxgen-data')
    self._caches = cache
    self._read = functools.cache(self._read_record) if cache else self._read_record
    self._max_bad_records = max_bad_records
    self._bad: set[int] = set()
    self._lock = threading.Lock()

  @property
  def bad_records(self) -> int:
    return len(self._bad)

  @functools.cached_property
  def example(self) -> Record:
    """The first readable record: the shapes and dtypes of all of them."""
    for index in range(self._dataset.num_examples):
      record = self._read_or_count(index)
      if record is not None:
        finished = self._finished(record, np.random.default_rng(index))
        check_record(self._dataset, finished)
        return finished
    raise AssertionError('unreachable: the limit on bad records is below the number of records')

  def together(self, indices: Sequence[int]) -> Mapping[int, Any]:
    """Raw records by number, for `read_or_other` and `read_or_blank`; {} where these read them one by one."""
    return {} if self._caches else read_raw(self._dataset, indices)

  def read_or_other(self, index: int, rng: np.random.Generator, raw: Any = None) -> Record:
    """The record, or if it is bad another one, chosen by `rng` alone, which the transform takes too."""
    record = self._read_or_count(index, raw)
    while record is None:
      record = self._read_or_count(int(rng.integers(self._dataset.num_examples)))
    return self._finished(record, rng)

  def read_or_blank(self, index: int, raw: Any = None) -> Record:
    """The record with 'mask' True, or zeros with 'mask' False where there is none or it is bad."""
    record = self._read_or_count(index, raw) if index < self._dataset.num_examples else None
    mask = np.asarray(record is not None)
    if record is not None:
      record = self._finished(record, np.random.default_rng(index))
    else:
      record = {name: np.zeros_like(value) for name, value in self.example.items()}
    return record | {'mask': mask}

  def blanks(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """`read_or_blank` of each number, stacked."""
    raw = self.together(indices)
    return self.stack(lambda index: self.read_or_blank(index, raw.get(index)), indices)

  def stack(self, read: Callable[[T], Record], items: Sequence[T]) -> dict[str, np.ndarray]:
    """`read` of each item, in this order, stacked; each thread takes a run of them."""
    chunk = -(-len(items) // self._threads)
    chunks = [items[first : first + chunk] for first in range(0, len(items), chunk)]
    records = [record for part in self._pool.map(lambda c: [read(i) for i in c], chunks) for record in part]
    if differ := {name for record in records for name in set(record) ^ set(records[0])}:
      raise ValueError(
        f'records of {self._dataset.name} ({self._dataset.split}) have different fields: not all have '
        f'{", ".join(sorted(differ))}; add them to all, or leave them out, in its decode or the transform of its loader'
      )
    return {name: self._stack(name, [record[name] for record in records]) for name in records[0]}

  def _stack(self, name: str, values: list[np.ndarray]) -> np.ndarray:
    shapes = sorted({value.shape for value in values})
    if len(shapes) > 1:
      raise ValueError(
        f'{name}s of {self._dataset.name} ({self._dataset.split}) have different shapes, {shapes[0]} and {shapes[-1]}; '
        'open the dataset with a size, so that all are cropped to it'
      )
    return np.stack(values)

  def _read_or_count(self, index: int, raw: Any = None) -> Record | None:
    """The record, or None if it is bad.

    Raises:
      ValueError: there are more bad records than allowed.
    """
    try:
      return self._read(index, raw)
    except BadRecord as error:
      with self._lock:
        self._bad.add(index)
        bad = len(self._bad)
      if bad > self._max_bad_records or bad == self._dataset.num_examples:
        raise ValueError(
          f'{bad} unreadable records, and max_bad_records is {self._max_bad_records}; the last: {error}. '
          'Prepare the dataset again (`jaxgen data prepare ... --overwrite`), or raise max_bad_records'
        ) from error
      return None

  def _read_record(self, index: int, raw: Any) -> Record:
    record = self._dataset.read(index, raw)
    return record if self._transform is not None else numbers(record)

  def _finished(self, record: Record, rng: np.random.Generator) -> Record:
    """The transformed record; the cache keeps it as it was before."""
    return record if self._transform is None else numbers(self._transform(dict(record), rng))


def numbers(record: Record) -> Record:
  """The fields that are numbers, as arrays."""
  arrays = {name: np.asarray(value) for name, value in record.items()}
  return {name: value for name, value in arrays.items() if value.dtype.kind in 'biuf'}
