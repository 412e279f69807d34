"""The batch of a step is a pure function of (dataset, seed, step), however and wherever it is read."""

import errno
import itertools
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxgen import data, digests
from jaxgen.data.loader import held_rows

ROOT = pathlib.Path(__file__).parent.parent
NUM = 37


def decode(index: int) -> dict:
  image = np.random.default_rng(index).uniform(-1, 1, (4, 4, 3)).astype(np.float32)
  return {'image': image, 'label': np.int32(index), 'caption': f'number {index}'}


def numbers(num: int = NUM, decode=decode) -> data.Dataset:
  """A dataset whose label is the record's number."""
  return data.Dataset('numbers', 'train', range(num), decode, 'fingerprint', tuple(str(i) for i in range(num)))


def loader(dataset=None, **options) -> data.Loader:
  return data.Loader(dataset or numbers(), **({'batch_size': 8, 'seed': 3} | options))


def labels(loader: data.Loader, steps) -> list[int]:
  size = loader.identity['batch_size']
  return [int(label) for step in steps for label in loader.rows(step, range(size))['label']]


def mesh(**sizes) -> jax.sharding.Mesh:
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def one_device() -> SingleDeviceSharding:
  return SingleDeviceSharding(jax.devices()[0])


def assert_same(batch, other) -> None:
  assert batch.keys() == other.keys()
  for name in batch:
    np.testing.assert_array_equal(np.asarray(batch[name]), np.asarray(other[name]))
    assert batch[name].dtype == other[name].dtype


# --- purity


@pytest.mark.parametrize('options', [{'threads': 1}, {'threads': 7}, {'prefetch': 0}, {'prefetch': 5}, {'cache': True}])
def test_the_batch_does_not_depend_on_how_it_is_read(options):
  wanted = loader(flip=True)
  batches = loader(flip=True, **options).iterate(4, one_device())
  for step in range(4, 12):
    assert_same(next(batches), wanted.rows(step, range(8)))
  batches.close()


def test_any_rows_of_any_step_are_those_of_the_batch():
  wanted = loader(flip=True)
  whole = {step: wanted.rows(step, range(8)) for step in (0, 3, 1000)}
  other = loader(flip=True)
  for step in (1000, 0, 3, 0):
    for rows in ([5], [1, 6, 2], range(4, 8)):
      assert_same(other.rows(step, rows), {name: value[list(rows)] for name, value in whole[step].items()})


def test_resuming_goes_on_with_the_same_batches():
  first = loader(flip=True).iterate(0, one_device())
  seen = [next(first) for _ in range(9)]
  resumed = loader(flip=True).iterate(5, one_device())
  for step in range(5, 9):
    assert_same(next(resumed), seen[step])
  first.close()
  resumed.close()


def test_each_epoch_is_another_permutation():
  epochs = np.array(labels(loader(), range(NUM)))[: 8 * NUM].reshape(8, NUM)  # 37 batches of 8 are 8 epochs of 37
  for epoch in epochs:
    assert sorted(epoch) == list(range(NUM))
  assert len({tuple(epoch) for epoch in epochs}) == 8
  assert labels(loader(seed=4), range(5)) != labels(loader(), range(5))
  assert labels(loader(shuffle=False), range(5)) == [i % NUM for i in range(40)]


def test_the_next_seed_is_not_the_next_epoch():
  following = labels(loader(), range(NUM))[NUM : 2 * NUM]
  assert labels(loader(seed=4), range(NUM))[:NUM] != following


def test_the_order_and_the_flips_are_the_ones_that_old_runs_were_trained_with():
  # From Grain 0.2.18. If another version of Grain gives other numbers, old runs cannot be resumed with it.
  plain, flipped = (data.Loader(numbers(10), batch_size=10, seed=0, flip=flip) for flip in (False, True))
  assert labels(plain, range(2)) == [1, 2, 4, 5, 9, 7, 8, 6, 0, 3, 9, 6, 1, 8, 2, 0, 3, 5, 4, 7]
  straight, maybe = plain.rows(0, range(10))['image'], flipped.rows(0, range(10))['image']
  mirrored = np.any(straight != maybe, axis=(1, 2, 3))
  assert np.flatnonzero(mirrored).tolist() == [0, 1, 3, 4, 5, 6]


def test_flips_are_a_function_of_seed_and_place():
  plain, flipped = loader(), loader(flip=True)
  mirrored = []
  for step in range(20):
    straight, maybe = plain.rows(step, range(8)), flipped.rows(step, range(8))
    np.testing.assert_array_equal(straight['label'], maybe['label'])
    for image, other in zip(straight['image'], maybe['image'], strict=True):
      mirrored.append(bool((image[:, ::-1] == other).all()))
      assert mirrored[-1] or (image == other).all()
  assert 0.4 < np.mean(mirrored) < 0.6
  # The same record is mirrored in some epochs only, and another seed mirrors others.
  by_record = {}
  for label, flip in zip(labels(plain, range(20)), mirrored, strict=True):
    by_record.setdefault(label, set()).add(flip)
  assert sum(flips == {True, False} for flips in by_record.values()) > NUM * 0.6


def test_what_must_not_change_is_in_the_identity():
  base = loader().identity
  changed = [
    loader(numbers()._replace(fingerprint='other')),
    loader(seed=4),
    loader(batch_size=16),
    loader(flip=True),
    loader(shuffle=False),
  ]
  for other in changed:
    assert sum(other.identity[key] != base[key] for key in base) == 1
  assert loader(threads=3, prefetch=0, cache=True, max_bad_records=7).identity == base
  assert loader(transform=choose, transform_name='choose').identity != base


# --- fields


def choose(record, rng):
  return record | {'text': rng.integers(1 << 30, size=2)}


@pytest.mark.parametrize('cache', [False, True])
def test_a_transform_chooses_anew_in_each_epoch_as_a_function_of_the_step(cache):
  one = loader(transform=choose, cache=cache, flip=True)
  batches = [one.rows(step, range(8)) for step in range(14)]
  chosen = {}
  for batch in batches:
    for label, text in zip(batch['label'], batch['text'], strict=True):
      chosen.setdefault(int(label), set()).add(tuple(text))
  assert all(len(texts) > 1 for texts in chosen.values())  # three epochs
  other = loader(transform=choose, cache=not cache, threads=1, flip=True)
  for step in (13, 2):
    assert_same(other.rows(step, range(8)), batches[step])
  assert_same(other.rows(5, [6]), {name: value[6:7] for name, value in batches[5].items()})


def test_text_stays_out_unless_it_is_made_numbers():
  assert loader().spec == {
    'image': jax.ShapeDtypeStruct((8, 4, 4, 3), np.float32),
    'label': jax.ShapeDtypeStruct((8,), np.int32),
  }

  def tokenize(record, rng):
    return record | {'text': np.int32([len(record['caption']), 7])}

  with_text = loader(transform=tokenize)
  batch = with_text.rows(0, range(8))
  assert with_text.spec['text'] == jax.ShapeDtypeStruct((8, 2), np.int32)
  np.testing.assert_array_equal(batch['text'], [[len(f'number {i}'), 7] for i in batch['label']])


def test_the_cache_decodes_each_record_once():
  decoded = []

  def counted(index):
    decoded.append(index)
    return decode(index)

  cached = loader(numbers(decode=counted), cache=True, threads=1)
  labels(cached, range(20))
  assert sorted(decoded) == list(range(NUM))


def test_mistakes_are_named():
  with pytest.raises(ValueError, match='batch_size is 0'):
    loader(batch_size=0)
  with pytest.raises(ValueError, match=r'seed of the data is -1; it must be in \[0, 2\*\*32\)'):
    loader(seed=-1)
  with pytest.raises(ValueError, match="numbers has no records in split 'train'"):
    loader(numbers(0))
  ragged = numbers(decode=lambda i: {'image': np.zeros((i + 1, 4, 3), np.float32)})
  with pytest.raises(ValueError, match=r'images of numbers .* have different shapes.*size'):
    loader(ragged).rows(0, range(8))
  image = np.zeros((4, 4, 3), np.float32)
  mixed = numbers(decode=lambda i: {'image': image} | ({'label': np.int32(0)} if i % 2 else {}))
  with pytest.raises(ValueError, match=r'numbers .* have different fields: not all have label'):
    loader(mixed).rows(0, range(8))


# --- bad records


def with_bad(*bad):
  def decode_some(index):
    if index in bad:
      raise ValueError('not a readable image')
    return decode(index)

  return numbers(decode=decode_some)


def test_a_bad_record_is_replaced_by_the_same_one_whoever_reads():
  good, first, second = loader(), loader(with_bad(5, 20)), loader(with_bad(5, 20), threads=1, cache=True)
  replaced = set()
  for step in range(20):
    wanted, batch = good.rows(step, range(8)), first.rows(step, range(8))
    assert_same(second.rows(step, [7, 0, 3]), {name: value[[7, 0, 3]] for name, value in batch.items()})
    bad = np.isin(wanted['label'], [5, 20])
    np.testing.assert_array_equal(batch['label'][~bad], wanted['label'][~bad])
    replaced |= set(batch['label'][bad].tolist())
  assert not replaced & {5, 20}
  assert len(replaced) > 4  # not one favourite
  assert first.bad_records == 2
  assert good.bad_records == 0


def test_too_many_bad_records_are_an_error_that_names_one():
  dataset = with_bad(5, 20, 21)
  assert labels(loader(dataset, max_bad_records=3), range(5))
  with pytest.raises(
    ValueError, match=r'3 unreadable records, and max_bad_records is 2; the last: record \d+ of numbers'
  ):
    labels(loader(dataset, max_bad_records=2), range(5))
  with pytest.raises(ValueError, match=r'37 unreadable records'):
    _ = loader(with_bad(*range(NUM))).spec


def test_an_error_in_the_background_reaches_the_loop():
  batches = loader(with_bad(5), max_bad_records=0).iterate(0, one_device())
  with pytest.raises(ValueError, match='1 unreadable records, and max_bad_records is 0'):
    list(itertools.islice(batches, 5))


class Batched(list):
  """A source that reads many records at a time, as ArrayRecord's does, and fails where one of them is bad."""

  def __init__(self, records, bad=()):
    super().__init__(records)
    self.bad, self.calls, self.singles = bad, [], 0

  def __getitem__(self, index):
    self.singles += 1
    if index in self.bad:
      raise ValueError('a torn chunk')
    return super().__getitem__(index)

  def __getitems__(self, indices):
    self.calls.append(list(indices))
    if set(indices) & set(self.bad):
      raise ValueError('a torn chunk')
    return [list.__getitem__(self, index) for index in indices]


def test_the_records_of_a_batch_are_read_together():
  plain, source = numbers(), Batched(range(NUM))
  many = loader(plain._replace(source=source), flip=True)
  for step in range(8):
    assert_same(many.rows(step, range(8)), loader(flip=True).rows(step, range(8)))
  assert (len(source.calls), source.singles) == (8, 0)
  with data.epoch(plain._replace(source=Batched(range(NUM))), batch_size=8, sharding=one_device()) as batches:
    assert [int(label) for batch in batches for label in batch['label'][batch['mask']]] == list(range(NUM))


def test_a_bad_record_among_those_read_together_costs_no_other():
  bad = (5, 20)
  many = loader(numbers()._replace(source=Batched(range(NUM), bad)))
  single = loader(with_bad(*bad))
  for step in range(10):
    assert_same(many.rows(step, range(8)), single.rows(step, range(8)))
  assert many.bad_records == single.bad_records == 2


class Failing(list):
  """A source whose reads of one record fail for a while, as those of a disk or a network do."""

  def __init__(self, records, code, times):
    super().__init__(records)
    self.code, self.left = code, times

  def __getitem__(self, index):
    if index == 5 and self.left:
      self.left -= 1
      raise OSError(self.code, os.strerror(self.code))
    return super().__getitem__(index)


@pytest.mark.parametrize('code', [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES])
def test_a_record_that_only_could_not_be_read_is_not_replaced_by_another(code, monkeypatch):
  monkeypatch.setattr(digests, 'WAITS', (0.0, 0.0, 0.0))
  good, plain = loader(), numbers()
  passing = loader(plain._replace(source=Failing(plain.source, code, 3)))
  for step in range(5):
    np.testing.assert_array_equal(passing.rows(step, range(8))['label'], good.rows(step, range(8))['label'])
  assert passing.bad_records == 0
  lasting = loader(plain._replace(source=Failing(plain.source, code, 10**6)))
  with pytest.raises(OSError, match=rf'record 5 of numbers .*{os.strerror(code)}.* tried 4 times; this is no damage'):
    labels(lasting, range(5))
  assert lasting.bad_records == 0


def test_a_bug_in_a_transform_is_not_a_bad_record():
  with pytest.raises(KeyError, match='missing'):
    loader(transform=lambda record, rng: record['missing']).rows(0, [0])


# --- meshes


@pytest.mark.parametrize(
  ('sizes', 'spec'),
  [
    ({'data': 8}, PartitionSpec('data')),
    ({'data': 2, 'fsdp': 4}, PartitionSpec(('data', 'fsdp'))),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, PartitionSpec(('data', 'fsdp'))),
    ({'tensor': 8}, PartitionSpec(None)),
  ],
)
def test_the_mesh_gets_the_rows_in_order(sizes, spec):
  sharding = NamedSharding(mesh(**sizes), spec)
  decoded = []

  def counted(index):
    decoded.append(index)
    return decode(index)

  with loader(numbers(decode=counted), prefetch=0).iterate(2, sharding) as batches:
    batch = next(batches)
  assert_same(batch, loader().rows(2, range(8)))
  assert all(array.sharding.is_equivalent_to(sharding, array.ndim) for array in batch.values())
  assert len(decoded) == 8  # once each, though with `tensor` several devices hold a row


def test_a_batch_that_does_not_divide_is_an_error_before_anything_is_read():
  sharding = NamedSharding(mesh(data=4, tensor=2), PartitionSpec('data'))
  with pytest.raises(ValueError, match='batch_size 6 does not divide over 4 devices; use a multiple of 4'):
    loader(batch_size=6).iterate(0, sharding)
  with pytest.raises(ValueError, match='batch_size 6 does not divide over 4 devices'):
    data.epoch(numbers(), batch_size=6, sharding=sharding)
  assert held_rows(sharding, 8) == list(range(8))


def test_each_of_two_processes_reads_what_its_devices_hold(monkeypatch):
  """Over (data, fsdp, tensor) each process holds half of the rows; over (tensor, data) both hold all."""
  halves = NamedSharding(mesh(data=2, fsdp=2, tensor=2), PartitionSpec(('data', 'fsdp')))
  copies = NamedSharding(mesh(tensor=2, data=4), PartitionSpec('data'))

  def held(sharding, rank):
    own = jax.devices()[4 * rank : 4 * rank + 4]
    held_by = lambda self, shape: {device: self.devices_indices_map(shape)[device] for device in own}  # noqa: E731
    with monkeypatch.context() as patch:
      patch.setattr(NamedSharding, 'addressable_devices_indices_map', held_by)
      return held_rows(sharding, 8)

  assert [held(halves, rank) for rank in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert [held(copies, rank) for rank in range(2)] == [list(range(8))] * 2


@pytest.mark.slow
def test_two_processes_read_their_own_rows_of_the_same_batch(tmp_path):
  """Over (data, fsdp, tensor) each process holds half of the rows; over (tensor, data) both hold all."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, __file__, str(rank), str(port), str(tmp_path)],
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '4', 'PYTHONPATH': str(ROOT)},
      cwd=ROOT,
    )
    for rank in range(2)
  ]
  assert [process.wait(timeout=120) for process in processes] == [0, 0]
  for layout, num_rows in (('halves', 4), ('copies', 8)):
    for rank in range(2):
      got = np.load(tmp_path / f'{layout}{rank}.npz')
      assert len(got['rows']) == num_rows
      assert_same(
        {name: got[name] for name in ('image', 'label')}, loader(flip=True).rows(3, [int(r) for r in got['rows']])
      )
      assert sorted(got['decoded']) == sorted(got['label'])
  rows = [np.load(tmp_path / f'halves{rank}.npz')['rows'].tolist() for rank in range(2)]
  assert rows[0] != rows[1]
  assert sorted(rows[0] + rows[1]) == list(range(8))


def process(rank: int, port: int, place: pathlib.Path) -> None:
  """One of the processes of the test above: writes the rows that its devices hold, and what it decoded."""
  jax.distributed.initialize(f'localhost:{port}', 2, rank)
  layouts = {
    'halves': (mesh(data=2, fsdp=2, tensor=2), PartitionSpec(('data', 'fsdp'))),
    'copies': (mesh(tensor=2, data=4), PartitionSpec('data')),
  }
  for layout, (devices, spec) in layouts.items():
    decoded = []

    def counted(index, decoded=decoded):
      decoded.append(index)
      return decode(index)

    batches = loader(numbers(decode=counted), flip=True, prefetch=0).iterate(3, NamedSharding(devices, spec))
    held = {}
    for name, array in next(batches).items():
      for shard in array.addressable_shards:
        start, stop, _ = shard.index[0].indices(8)
        for row, value in zip(range(start, stop), np.asarray(shard.data), strict=True):
          held.setdefault(row, {})[name] = value
    stacked = {name: np.stack([held[row][name] for row in sorted(held)]) for name in ('image', 'label')}
    np.savez(place / f'{layout}{rank}.npz', rows=sorted(held), decoded=decoded, **stacked)
  jax.distributed.shutdown()


# --- prefetching


@pytest.mark.parametrize('prefetch', [0, 4])
def test_prefetching_reads_ahead_of_what_was_asked_for(prefetch):
  read = []

  def counted(index):
    read.append(index)
    return decode(index)

  made = loader(numbers(decode=counted), threads=1, prefetch=prefetch)
  with made.iterate(0, one_device()) as batches:
    next(batches)
    size = made.identity['batch_size']
    deadline = time.monotonic() + 20
    while len(read) < (1 + prefetch) * size and time.monotonic() < deadline:
      time.sleep(0.01)
    assert len(read) >= (1 + prefetch) * size
    assert prefetch or len(read) == size


def test_closing_ends_the_reading():
  read = threading.Event()

  def seen(index):
    read.set()
    return decode(index)

  before = set(threading.enumerate())
  batches = loader(numbers(decode=seen)).iterate(0, one_device())
  next(batches)
  batches.close()
  time.sleep(0.2)
  read.clear()
  time.sleep(0.2)
  assert not read.is_set()
  left = set(threading.enumerate()) - before
  assert not [thread for thread in left if thread.name.startswith('grain-prefetch')]


# --- one epoch in order


def test_an_epoch_has_every_record_once_and_masks_the_rest():
  sharding = NamedSharding(mesh(data=4, tensor=2), PartitionSpec('data'))
  batches = list(data.epoch(with_bad(5), batch_size=8, sharding=sharding))
  assert len(batches) == 5
  mask = np.concatenate([np.asarray(batch['mask']) for batch in batches])
  seen = np.concatenate([np.asarray(batch['label']) for batch in batches])
  assert mask.dtype == bool
  assert seen[mask].tolist() == [i for i in range(NUM) if i != 5]
  assert not mask[5]
  assert not mask[NUM:].any()
  images = np.concatenate([np.asarray(batch['image']) for batch in batches])
  np.testing.assert_array_equal(images[mask], [decode(i)['image'] for i in range(NUM) if i != 5])
  assert not images[~mask].any()


if __name__ == '__main__':
  process(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]))
