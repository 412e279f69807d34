"""Shards of records: read in any order with few of them open, and written by one process or several."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python import array_record_module

from jaxgen.data import shard_writer, shards, tfds_builder
from jaxgen.data.job import Job, Numbered
from jaxgen.data.shards import Part, Shards


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  """Ten shards of ten records, of which the first is read from its third on, and the last but for two."""
  place = tmp_path_factory.mktemp('shards')
  made = []
  for shard in range(10):
    path = str(place / f'{shard}')
    writer = array_record_module.ArrayRecordWriter(path, 'group_size:1')
    for i in range(10):
      writer.write(f'{shard} {i}'.encode())
    writer.close()
    made.append(Part(path, 3 if shard == 0 else 0, {0: 7, 9: 8}.get(shard, 10), 10))
  return made


WANTED = [f'{shard} {i}'.encode() for shard in range(10) for i in range(10)][3:-2]


def test_records_come_in_the_order_that_they_are_asked_for(parts):
  source = Shards(parts)
  assert len(source) == 95
  assert list(source) == WANTED
  order = [94, 0, 50, 50, 7, 6, 93]
  assert source.__getitems__(order) == [WANTED[i] for i in order]
  for index in (95, -1):
    with pytest.raises(IndexError, match=f'record {index} of 95'):
      source[index]
  assert len(Shards([])) == 0


def test_few_shards_are_open_at_once_whoever_reads(parts, monkeypatch):
  monkeypatch.setattr(shards, '_RECORDS', 30)
  source, wrong = Shards(parts), []

  def read(seed):
    for i in range(200):
      index = (37 * i + seed) % 95
      if source[index] != WANTED[index]:
        wrong.append(index)

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
  assert (len(source._open), source._records) == (3, 30)
  monkeypatch.setattr(shards, '_SHARDS', 2)
  source.__getitems__(range(95))
  assert len(source._open) == 2


def _records(shards):
  """Of each number two records, but of those that divide by five."""
  for shard in shards:
    for number in shard:
      yield [{'image': np.full((1,), number + copy / 2, np.float16)} for copy in range(2 if number % 5 else 0)]


def _write(path, job, splits=None):
  layout = tfds_builder.Layout('about', '', tfds_builder.arrays({'image': np.zeros(1, np.float16)}), {})
  splits = splits or {'train': Numbered(23, _records, shard=4), 'test': Numbered(3, _records, shard=4)}
  shard_writer.write(path, layout, splits, identity='a', job=job)


def _files(path):
  return {file.name: file.read_bytes() for file in path.iterdir()}


def test_three_processes_write_the_files_that_one_writes(tmp_path):
  paths = [tmp_path / str(count) / 'things' / '1.0.0' for count in (1, 3)]
  lines = []
  for count, path in zip((1, 3), paths, strict=True):
    barrier = threading.Barrier(count)
    jobs = [Job(index, count, lambda phase, b=barrier: b.wait(60), lines.append) for index in range(count)]
    with ThreadPoolExecutor() as pool:
      list(pool.map(_write, [path] * count, jobs))
  assert _files(paths[0]) == _files(paths[1])
  assert not (tmp_path / '3' / 'things.partial').exists()
  assert 'things train: 1 of 2 shards, 0 of 4 originals' in lines
  source = tfds_builder.data_source(tfds_builder.open_folder(paths[0]), 'train', image_field=None)
  values = [float(source[i]['image'][0]) for i in range(len(source))]
  assert sorted(values) == [number + copy for number in range(23) if number % 5 for copy in (0, 0.5)]
  assert values != sorted(values)


def test_what_a_killed_process_left_half_written_is_not_in_the_dataset(tmp_path):
  path, alone = tmp_path / 'things' / '1.0.0', Job(0, 1, lambda phase: None, lambda where: None)

  def dying(shards):
    (tmp_path / 'things.partial' / '.things-test.array_record-00000-of-00001.0123abcd.tmp').touch()
    return _records(shards)

  _write(path, alone, {'train': Numbered(3, _records), 'test': Numbered(3, dying)})
  assert not [name for name in _files(path) if name.endswith('.tmp')]


def test_a_dataset_without_a_record_is_refused(tmp_path):
  empty = {'train': Numbered(3, lambda shards: ([] for shard in shards for _ in shard))}
  with pytest.raises(ValueError, match='things would have no record: none of its originals can be read'):
    _write(tmp_path / 'things' / '1.0.0', Job(0, 1, lambda phase: None, lambda where: None), empty)
