"""The step-indexed loader: the batch of a step is a pure function of (dataset, seed, step).

Row r of the batch of step s is number

  (1)  p = s * batch_size + r

of an endless sequence in which every epoch is a new permutation of the dataset. Nothing is remembered between
steps, so there is no iterator state to save; a process reads only the rows that its devices hold, and neither the
number of processes nor of threads, nor how much is prefetched, can change what a batch is.

The permutations (of index i in epoch e, without storing them) and the random numbers of each p are Grain's
(https://github.com/google/grain): `MapDataset` is random access.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

import jax
import numpy as np

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.reader import Reader, Transform
from jaxgen.typing import Array

HostBatch = dict[str, np.ndarray]
T = TypeVar('T')


class Loader:
  """Batches of a dataset by the number of the step."""

  def __init__(
    self,
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    flip: bool = False,
    transform: Transform | None = None,
    transform_name: str = '',
    cache: bool = False,
    threads: int | None = None,
    prefetch: int = 2,
    max_bad_records: int = 100,
  ):
    """
    Args:
      dataset: dataset to read.
      batch_size: images in the global batch, over all processes.
      seed: seed of the order and the flips, in [0, 2**32).
      shuffle: a new permutation for each epoch, else the dataset's own order.
      flip: mirrors each image left to right with probability 1/2.
      transform: (decoded record, rng) to record, after the cache, so that what it chooses by `rng` (a phrasing, a
        crop) varies from epoch to epoch and stays a function of (seed, step). Fields that are not numbers
        afterwards do not enter the batch.
      transform_name: name of the transform in the loader's identity, with what it depends on (a vocabulary's hash).
      cache: keeps decoded records in memory, before the transform; for datasets that fit.
      threads: number of threads that decode; one for each core, at most 16, when None.
      prefetch: batches made ready before they are asked for.
      max_bad_records: records that this process may find unreadable before it stops with an error.
    """
    import grain

    if batch_size < 1:
      raise ValueError(f'batch_size is {batch_size}; it must be at least 1')
    if not 0 <= seed < 2**32:
      raise ValueError(f'seed of the data is {seed}; it must be in [0, 2**32)')
    self._batch_size, self._prefetch, self._flip = batch_size, prefetch, flip
    self.dataset, self.transform = dataset, transform
    self.class_names = dataset.class_names
    self.about = f'{dataset.name} {dataset.split}, {dataset.num_examples:,} records'
    self._reader = Reader(dataset, transform=transform, cache=cache, threads=threads, max_bad_records=max_bad_records)
    self._identity = {
      'dataset': dataset.fingerprint,
      'data_seed': seed,
      'batch_size': batch_size,
      'shuffle': shuffle,
      'flip': flip,
    } | ({'transform': transform_name} if transform_name else {})
    order = grain.MapDataset.range(dataset.num_examples).seed(seed)
    order = order.shuffle() if shuffle else order
    self._order = order.repeat()  # position p of Eq. 1 -> number of the record
    self._sequence = order.random_map(self._read).repeat()  # position p -> record
    self._ahead: dict[int, Any] = {}  # raw records by number, which were read together

  @property
  def identity(self) -> dict[str, Any]:
    """What must not change when a run is resumed."""
    return dict(self._identity)

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the global batch."""
    return {
      name: jax.ShapeDtypeStruct((self._batch_size, *value.shape), value.dtype)
      for name, value in self._reader.example.items()
    }

  @property
  def specs(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """The specs of all batches there are: one, where `BucketLoader` has several."""
    return [self.spec]

  @property
  def bad_records(self) -> int:
    """Different records that this process found unreadable so far; others took their places."""
    return self._reader.bad_records

  def rows(self, step: int, rows: Sequence[int]) -> HostBatch:
    """Some rows of the global batch of a step, in the order asked for."""
    positions = [step * self._batch_size + int(row) for row in rows]  # Eq. 1
    raw = self._reader.together([cast(int, self._order[position]) for position in positions])
    self._ahead.update(raw)
    try:
      return self._reader.stack(lambda position: cast(Record, self._sequence[position]), positions)
    finally:
      for index in raw:
        self._ahead.pop(index, None)

  def iterate(self, start_step: int, sharding: jax.sharding.Sharding) -> 'Batches[dict[str, Array]]':
    """Global batches of `start_step`, `start_step + 1`, ... as arrays on the devices of `sharding`.

    Args:
      start_step: number of the first batch.
      sharding: sharding of the batch axis, the same for every field.

    Raises:
      ValueError: the batch does not divide over the devices.
    """
    rows = held_rows(sharding, self._batch_size)
    return Batches(
      lambda step: to_devices(self.rows(step, rows), rows, sharding, self._batch_size),
      range(start_step, sys.maxsize),
      prefetch=self._prefetch,
    )

  def _read(self, index: int, rng: np.random.Generator) -> Record:
    """Record `index`, augmented by the random numbers of its place in the sequence."""
    mirrored = self._flip and rng.random() < 0.5
    record = self._reader.read_or_other(index, rng, self._ahead.get(index))
    return record | {'image': record['image'][:, ::-1]} if mirrored else record


def epoch(
  dataset: Dataset,
  *,
  batch_size: int,
  sharding: jax.sharding.Sharding,
  transform: Transform | None = None,
  threads: int | None = None,
  prefetch: int = 2,
  max_bad_records: int = 100,
  first: int = 0,
) -> 'Batches[dict[str, Array]]':
  """Every record once, in order, from batch `first` on: for reference statistics.

  The batches have one more field, 'mask', bool [b]: False where the row is no record of the dataset, because the
  last batch is filled up or the record cannot be read. The arguments are those of `Loader`; the transform of record i
  gets the random numbers of i.
  """
  reader = Reader(dataset, transform=transform, cache=False, threads=threads, max_bad_records=max_bad_records)
  rows = held_rows(sharding, batch_size)
  steps = range(first, -(-dataset.num_examples // batch_size))

  def batch(step: int) -> dict[str, Array]:
    positions = [step * batch_size + row for row in rows]
    return to_devices(reader.blanks(positions), rows, sharding, batch_size)

  return Batches(batch, steps, prefetch=prefetch)


class Batches(Generic[T]):
  """An iterator over `make(step)` that makes batches ready in the background.

  The background is one thread; `make` may use more. Close it, or leave the `with` block, to stop reading ahead.
  """

  def __init__(self, make: Callable[[int], T], steps: range, *, prefetch: int):
    import grain

    options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
    source = grain.MapDataset.range(steps.start, steps.stop).map(make)
    self._iterator = iter(source.to_iter_dataset(options))
    self._iterator.start_prefetch()

  def __iter__(self) -> 'Batches[T]':
    return self

  def __next__(self) -> T:
    return next(self._iterator)

  def close(self) -> None:
    self._iterator.close()

  def __enter__(self) -> 'Batches[T]':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def held_rows(sharding: jax.sharding.Sharding, batch_size: int) -> list[int]:
  """The rows of the global batch that this process's devices hold, in increasing order, each once.

  Raises:
    ValueError: the batch does not divide over the devices.
  """
  parts = _parts(sharding)
  if batch_size % parts:
    raise ValueError(f'batch_size {batch_size} does not divide over {parts} devices; use a multiple of {parts}')
  held = sharding.addressable_devices_indices_map((batch_size,)).values()
  return sorted({row for index in held if index for row in range(*index[0].indices(batch_size))})


def _parts(sharding: jax.sharding.Sharding) -> int:
  """Over how many parts the batch axis goes."""
  devices = len(sharding.device_set)
  return devices // sharding.shard_shape((devices,))[0]


def to_devices(
  batch: HostBatch, rows: Sequence[int], sharding: jax.sharding.Sharding, batch_size: int
) -> dict[str, Array]:
  """Makes global arrays of which this process has the given rows (increasing); moves no row between processes."""

  def put(local: np.ndarray) -> Array:
    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
      assert index is not None
      start, stop, _ = index[0].indices(batch_size)
      first = np.searchsorted(rows, start)
      return local[first : first + stop - start]

    return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

  return {name: put(local) for name, local in batch.items()}
