"""Checkpoints that are damaged, and checkpoints that only could not be read."""

import errno
import os
import random
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxgen import checkpoint, digests
from jaxgen.checkpoint import CheckpointError, Checkpoints, Policy
from jaxgen.metrics_file import read_metrics
from jaxgen.train import abstract_state, train
from tests import toys


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a run with checkpoints of steps 8 and 12, and its last state."""
  folder = tmp_path_factory.mktemp('run') / 'run'
  return folder, jax.device_get(train(toys.experiment(), folder))


@pytest.fixture
def run(whole, tmp_path):
  return shutil.copytree(whole[0], tmp_path / 'run')


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
  monkeypatch.setattr(digests, 'WAITS', (0.0, 0.0, 0.0))


def _files(folder):
  return sorted(path for path in folder.rglob('*') if path.is_file())


def _flip(path, random_numbers):
  data = bytearray(path.read_bytes())
  data[random_numbers.randrange(len(data))] ^= 1 << random_numbers.randrange(8)
  path.write_bytes(data)


def _same(state, wanted):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), wanted)


def test_a_state_that_one_copy_reads_and_sends_is_the_state(whole, monkeypatch):
  """On eight devices of one process; test_distributed.py looks at who reads."""
  abstract = abstract_state(toys.experiment())
  assert not checkpoint.copies_apart(abstract)
  monkeypatch.setattr(checkpoint, 'copies_apart', lambda tree: True)
  state = Checkpoints(whole[0] / 'checkpoints').restore(abstract)
  _same(state, whole[1])
  assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, abstract)


def test_a_flipped_bit_anywhere_is_found(run):
  """Without digests one in ten gives other arrays without a word."""
  checkpoint, random_numbers = run / 'checkpoints' / '12', random.Random(0)
  for path in [path for path in _files(checkpoint) if path.name not in ('commit_success.txt', '_CHECKPOINT_METADATA')]:
    before = path.read_bytes()
    _flip(path, random_numbers)
    assert digests.problem(checkpoint) is not None, path
    path.write_bytes(before)
  assert digests.problem(checkpoint) is None


def test_digests_of_large_files(tmp_path, monkeypatch):
  """Blocks and chunks: the same digest whatever the chunk, and another for every bit, swapped blocks and a cut."""
  monkeypatch.setattr(digests, '_CHUNK', 1 << 14)
  data, path = np.random.default_rng(0).bytes(50_001), tmp_path / 'a'
  path.write_bytes(data)
  own = digests._digest(path)
  for changed in (
    *(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(0, 50_001, 997)),
    data[4096:8192] + data[:4096] + data[8192:],
    data[:-1],
    data + b'\0',
    b'',
  ):
    path.write_bytes(changed)
    assert digests._digest(path) != own
  path.write_bytes(data)
  monkeypatch.setattr(digests, '_CHUNK', 1 << 20)
  assert digests._digest(path) == own


def _largest(folder):
  return max((path for path in _files(folder) if path.parent.name == 'd'), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize('damage', ['flip', 'cut', 'gone', 'folder'])
def test_a_damaged_checkpoint_is_kept_aside_and_the_one_before_is_taken(damage, run, whole, caplog):
  params = run / 'checkpoints' / '12' / 'params'
  path = _largest(params)
  if damage == 'flip':
    _flip(path, random.Random(0))
  elif damage == 'cut':
    path.write_bytes(path.read_bytes()[:-1])
  elif damage == 'gone':
    path.unlink()
  else:
    shutil.rmtree(params)
  _same(train(toys.experiment(), run), whole[1])
  assert 'checkpoint 12 is damaged (params/' in caplog.text
  assert '12.damaged, and 4 steps are trained again, from step 8' in caplog.text
  assert {path.name for path in (run / 'checkpoints').iterdir()} >= {'8', '12', '12.damaged'}
  steps = [line['step'] for line in read_metrics(run / 'metrics.jsonl') if 'loss' in line]
  assert steps == sorted(set(steps))


def test_where_all_are_damaged_the_run_starts_again(run, whole, caplog):
  for step in ('8', '12'):
    _flip(_largest(run / 'checkpoints' / step / 'opt_state'), random.Random(1))
  _same(train(toys.experiment(), run), whole[1])
  assert '8.damaged, and the run starts again' in caplog.text


def test_what_is_sampled_with_is_checked(run):
  abstract = abstract_state(toys.experiment())
  _flip(_largest(run / 'checkpoints' / '12' / 'ema'), random.Random(0))
  with pytest.raises(CheckpointError, match=r'12 is damaged .*ema/\S+ is not as it was written.* goes on from step 8'):
    Checkpoints(run / 'checkpoints').restore_model(abstract)
  assert (run / 'checkpoints' / '12').exists()  # who only reads renames nothing


def test_a_checkpoint_of_earlier_versions_has_no_digests(run, whole):
  for step in ('8', '12'):
    (run / 'checkpoints' / step / digests.NAME).unlink()
  _same(train(toys.experiment(), run), whole[1])


@pytest.mark.parametrize('name', ['EIO', 'EMFILE', 'EACCES', 'ESTALE'])
@pytest.mark.parametrize('times', [2, 99])
def test_what_only_could_not_be_read_is_tried_again_and_named(name, times, run, whole, monkeypatch):
  code, tries, digest = getattr(errno, name), [], digests._digest

  def fails(path):
    if path.suffix != '.json' and len(tries) < times:
      tries.append(path)
      raise OSError(code, os.strerror(code), str(path))
    return digest(path)

  before = {path: path.read_bytes() for path in _files(run / 'checkpoints')}
  monkeypatch.setattr(digests, '_THREADS', 1)
  monkeypatch.setattr(digests, '_digest', fails)
  if times == 2:
    _same(train(toys.experiment(), run), whole[1])
  else:
    with pytest.raises(CheckpointError, match=rf'{os.strerror(code)}.* tried 4 times; this is no damage') as caught:
      train(toys.experiment(), run)
    assert 'delete' not in str(caught.value)
  assert {path: path.read_bytes() for path in _files(run / 'checkpoints')} == before


@pytest.mark.parametrize('times', [3, 99])
def test_so_is_what_the_library_for_arrays_says_in_words_of_its_own(times, run, whole, monkeypatch):
  tries, restore = [], ocp.CheckpointManager.restore

  def fails(self, step, args):
    if len(tries) < times:
      tries.append(step)
      raise ValueError('Error reading "a/b" in OCDBT database: Failed to open: [OS error 24: Too many open files]')
    return restore(self, step, args=args)

  monkeypatch.setattr(ocp.CheckpointManager, 'restore', fails)
  if times == 3:
    _same(train(toys.experiment(), run), whole[1])
  else:
    with pytest.raises(CheckpointError, match=r'Too many open files.* this is no damage'):
      train(toys.experiment(), run)
  assert (run / 'checkpoints' / '12').exists()


def test_two_damages_of_one_step_are_both_kept(run):
  checkpoints = Checkpoints(run / 'checkpoints', Policy())
  _flip(_largest(run / 'checkpoints' / '12' / 'params'), random.Random(0))
  shutil.copytree(run / 'checkpoints' / '12', run / 'checkpoints' / '12.damaged')
  assert checkpoints.recover() == 8
  assert (run / 'checkpoints' / '12.damaged.1').exists()
  checkpoints.close()


def test_a_checkpoint_of_a_former_edm_unet_names_the_version_to_use():
  old = {f'net/enc_16x16_block0/{name}/kernel': (8,) for name in ('conv0', 'qkv', 'proj')}
  new = {'net/enc_16x16_block0/attention/qkv/kernel': (8,)}
  assert 'before commit efd0106' in checkpoint._remedy([*old, *new], old)
  assert 'use the config' in checkpoint._remedy([*old, *new], new)
