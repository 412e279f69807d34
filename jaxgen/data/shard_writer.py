"""Writes a dataset shard by shard, by one process or by all of a job, in the layout of TFDS.

Originals are numbered; from each come some records, or none. Shard s of a split of n originals is made of those at the
places

  (1)  [s n / S, (s + 1) n / S)   with S = ceil(n / originals a shard)

of a fixed permutation of all, or of the blocks that can only be read whole, so that a slice of a split is a fair sample
of it. Process i of k makes the shards i, i + k, ... Each is a file that is whole or absent, with a note beside it of
what it holds. So a killed writer resumes where it was, and the files depend neither on kills nor on the number of
processes.

The shards of a dataset in DATA_DIR/NAME/VERSION are collected in DATA_DIR/NAME.partial, which is renamed when all are
there. In a bucket, where nothing can be renamed, they are collected in their place: a dataset is whole when its
dataset_info.json is there, which comes last.
"""

import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from etils import epath

from jaxgen.data import tfds_builder
from jaxgen.data.dataset import INFO, Record
from jaxgen.data.job import ALONE, Encoded, Job, Numbered
from jaxgen.files import remove_left_over, replacing, write_whole
from jaxgen.home import remote
from jaxgen.typing import Report

_NOTES = '.notes'
_IDENTITY = 'identity.json'
_NEWS_EVERY = 64  # originals


def write(
  path: pathlib.Path,
  layout: tfds_builder.Layout,
  splits: Mapping[str, Numbered],
  *,
  identity: str,
  job: Job = ALONE,
  report: Report = lambda message: None,
) -> None:
  """Writes the dataset in `path`, DATA_DIR/NAME/VERSION; every process of the job calls it.

  Args:
    path: its folder, or the mirror of one in a bucket.
    layout: what it says of itself.
    splits: originals by split.
    identity: everything that the records depend on; shards of another identity are deleted.
    job: processes that share the work, and see the same disk or bucket.
    report: called with the progress.

  Raises:
    ValueError: there is no record.
    OSError: the disk is full.
  """
  place = _Place(path)
  if job.index == 0:
    place.start(f'{identity} {[(name, split.num, split.shard) for name, split in splits.items()]}')
  job.meet(f'the writing of {place.name}')
  for name, split in splits.items():
    wanted = [s for s in range(job.index, split.shards, job.count) if not place.has(name, s)]
    order = _order(split)
    shards = [order(s * split.num // split.shards, (s + 1) * split.num // split.shards) for s in wanted]  # Eq. 1
    made = split.make(shards)
    for done, (s, numbers) in enumerate(zip(wanted, shards, strict=True)):
      where = f'{place.name} {name}: {done} of {len(wanted)} shards'
      report(where)
      place.put(name, s, split.shards, _telling(made, len(numbers), job, where), layout.features)
  job.meet(f'the shards of {place.name}')
  if job.index == 0:
    place.finish(layout, splits)
  job.meet(f'the end of {place.name}')


def _telling(made: Iterator[Sequence[Record]], num: int, job: Job, where: str) -> Iterator[Sequence[Record]]:
  """The records of `num` originals; reports progress to the other processes, which wait only while there is some."""
  for i in range(num):
    if i % _NEWS_EVERY == 0:
      job.at(f'{where}, {i} of {num} originals')
    yield next(made)


def _order(split: Numbered) -> Callable[[int, int], list[int]]:
  """The numbers of the originals from one place of the permutation to another."""
  import grain

  count = len(split.blocks) or split.num
  shuffled = grain.MapDataset.range(count).seed(0).shuffle()
  if not split.blocks:
    return lambda first, last: [cast(int, shuffled[i]) for i in range(first, last)]
  order, sizes = np.array([shuffled[i] for i in range(count)]), np.asarray(split.blocks)
  numbers = (np.cumsum(sizes) - sizes)[order]  # number of the first original of each block
  ends = np.cumsum(sizes[order])
  begins = ends - sizes[order]

  def originals(first: int, last: int) -> list[int]:
    places = np.arange(first, last)
    block = np.searchsorted(ends, places, side='right')
    return (numbers[block] + places - begins[block]).tolist()

  return originals


class _Place:
  """Where the shards of a dataset are collected."""

  def __init__(self, path: pathlib.Path):
    self.name = path.parent.name
    self._path, self._remote = path, remote(path)
    self._here = path.parent.with_name(f'{self.name}.partial')
    self._folder = self._remote or epath.Path(self._here)

  def start(self, identity: str) -> None:
    noted = self._folder / _IDENTITY
    if not noted.exists() or noted.read_text() != identity:
      if self._folder.exists():
        self._folder.rmtree()
      (self._folder / _NOTES).mkdir(parents=True)
      write_whole(noted, identity)

  def has(self, split: str, s: int) -> bool:
    return self._note(split, s).exists()

  def put(self, split: str, s: int, of: int, records: Iterator[Sequence[Record]], features: Any) -> None:
    """Writes a shard, and its note when it is there."""
    from array_record.python import array_record_module

    self._here.mkdir(parents=True, exist_ok=True)
    remove_left_over(self._here)
    file = self._here / tfds_builder.shard_name(self.name, split, s, of)
    digest, number, size = hashlib.sha256(), 0, 0
    with tfds_builder.naming_a_full_disk(self._here), replacing(file) as temporary:
      writer = array_record_module.ArrayRecordWriter(temporary.name, 'group_size:1')
      for record in (record for several in records for record in several):
        digest.update(_content(record))
        example = tfds_builder.serialized(features, {name: _stored(value) for name, value in record.items()})
        writer.write(example)
        number, size = number + 1, size + len(example)
      writer.close()
    if self._remote is not None:
      epath.Path(file).copy(self._remote / file.name, overwrite=True)
      file.unlink()
    write_whole(self._note(split, s), json.dumps({'records': number, 'bytes': size, 'digest': digest.hexdigest()}))

  def finish(self, layout: tfds_builder.Layout, splits: Mapping[str, Numbered]) -> None:
    """Writes what is said of all shards, and puts the dataset in its place."""
    notes = {
      name: [json.loads(self._note(name, s).read_text()) for s in range(split.shards)] for name, split in splits.items()
    }
    if not any(note['records'] for several in notes.values() for note in several):
      raise ValueError(f'{self.name} would have no record: none of its originals can be read')
    digests = {
      name: hashlib.sha256(' '.join(note['digest'] for note in several).encode()).hexdigest()
      for name, several in notes.items()
    }
    self._here.mkdir(parents=True, exist_ok=True)
    remove_left_over(self._here, seconds=0)  # killed processes left them; nobody writes here any more
    with tfds_builder.naming_a_full_disk(self._here):
      for name, data in layout.files.items():
        (self._here / name).write_bytes(data)
      tfds_builder.write_info(
        self._here, self.name, self._path.name, layout._replace(metadata={**layout.metadata, **digests}), notes
      )
    if self._remote is not None:
      for file in sorted(self._here.iterdir(), key=lambda file: file.name == INFO):  # that one comes last
        epath.Path(file).copy(self._remote / file.name, overwrite=True)
      shutil.rmtree(self._here)
    (self._folder / _NOTES).rmtree()
    (self._folder / _IDENTITY).unlink()
    if self._remote is None:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      os.rename(self._here, self._path)

  def _note(self, split: str, s: int) -> epath.Path:
    return self._folder / _NOTES / f'{split}-{s:05}.json'


def _stored(value: Any) -> Any:
  return io.BytesIO(value.png) if isinstance(value, Encoded) else value


def _content(record: Record) -> bytes:
  """The content of a record, whatever the compression of its image."""
  parts = []
  for name, value in sorted(record.items()):
    value = value.pixels if isinstance(value, Encoded) else value
    data = value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()
    parts.append(f'{name} {len(data)} '.encode() + data)
  return b''.join(parts)
