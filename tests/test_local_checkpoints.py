"""Local checkpoints: a run goes on from the disks of its machines, where they are whole, else from its folder."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from jaxgen import digests
from jaxgen.checkpoint import COMMIT_FILES, CheckpointError, Policy
from jaxgen.local_checkpoints import TOKEN, Local, LocalCheckpoints, newest_local_step
from jaxgen.metrics_file import read_metrics
from jaxgen.sharding import make_mesh
from jaxgen.train import train
from tests import toys

END, EVERY, FAILS = 10, 2, 7


class _Failing:
  """A loader whose data end before the last step."""

  def __init__(self, data):
    self._data = data
    self.identity, self.spec, self.specs = data.identity, data.spec, data.specs

  def iterate(self, step, place):
    for number, batch in enumerate(self._data.iterate(step, place), step):
      if number == FAILS:
        raise ValueError('no more data')
      yield batch


def _experiment(mesh, **changes):
  return toys.experiment(steps=END, mesh=mesh, log_every=1, checkpoints=Policy(every=4, keep=2), **changes)


@pytest.fixture(scope='module')
def mesh():
  return make_mesh(data=2, fsdp=4)


@pytest.fixture(scope='module')
def whole(mesh, tmp_path_factory):
  return jax.device_get(train(_experiment(mesh), tmp_path_factory.mktemp('whole')))


@pytest.fixture(scope='module')
def failed(mesh, tmp_path_factory):
  """A run that ended after step 7: with checkpoints of step 4 in its folder, and of 2 and 6 on the disk."""
  folder = tmp_path_factory.mktemp('failed')
  stage = _experiment(mesh)
  with pytest.raises(ValueError, match='no more data'):
    train(stage._replace(data=_Failing(stage.data)), folder / 'run', local=Local(str(folder / 'disk'), EVERY))
  return folder


def _resume(failed, tmp_path, mesh, damage=lambda place: None, **changes):
  """What a copy of the run says when it goes on, after some damage to its disk; its last state and metrics."""
  shutil.copytree(failed, tmp_path, dirs_exist_ok=True)
  run, disk = tmp_path / 'run', tmp_path / 'disk'
  place = next(disk.glob('*/process_0'))
  assert newest_local_step(Local(str(disk), EVERY), run) == 6
  assert sorted(path.name for path in place.iterdir()) == ['2', '6']
  damage(place)
  state = jax.device_get(train(_experiment(mesh, **changes), run, local=Local(str(disk), EVERY)))
  return state, read_metrics(run / 'metrics.jsonl'), disk


def _equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_goes_on_from_the_disk_and_nothing_differs(failed, whole, mesh, tmp_path, capsys):
  state, metrics, disk = _resume(failed, tmp_path, mesh)
  assert 'Going on from step 6 of 10' in capsys.readouterr().out
  _equal(state, whole)
  assert [line['step'] for line in metrics if 'loss' in line] == list(range(1, END + 1))
  assert not list(disk.iterdir())  # a run that has ended needs none


def _flip(place):
  path = max((path for path in (place / '6' / 'state').rglob('*') if path.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _cut(place):
  (place / '6' / 'note.json').unlink()


def _of_another_mesh(place):
  """Here one process holds all on any mesh; what it would hold of a part is known by its ranges."""
  note = place / '6' / 'note.json'
  note.write_text(json.dumps(json.loads(note.read_text()) | {'holds': 'other ranges'}))
  digests.write(note.parent, without=COMMIT_FILES)


@pytest.mark.parametrize(
  'damage',
  [_flip, _cut, shutil.rmtree, _of_another_mesh],
  ids=['a flipped bit', 'a lost file', 'a new disk', 'another mesh'],
)
def test_what_is_damaged_there_is_left_out(damage, failed, whole, mesh, tmp_path, capsys):
  state, _, _ = _resume(failed, tmp_path, mesh, damage)
  assert 'Going on from step 4 of 10' in capsys.readouterr().out
  _equal(state, whole)


def test_a_run_begun_anew_in_the_same_folder_finds_none(failed, whole, mesh, tmp_path, capsys):
  shutil.copytree(failed, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / 'run')
  _equal(train(_experiment(mesh), tmp_path / 'run', local=Local(str(tmp_path / 'disk'), EVERY)), whole)
  assert 'Going on' not in capsys.readouterr().out


def test_another_run_s_identity_is_refused(failed, mesh, tmp_path):
  with pytest.raises(ValueError, match='holds another run: '):
    _resume(failed, tmp_path, mesh, fingerprint='other data')


def test_a_damaged_token_is_made_anew(tmp_path):
  assert newest_local_step(Local(str(tmp_path / 'disk'), 1), tmp_path) == -1
  (tmp_path / TOKEN).write_text('{"tok')
  assert newest_local_step(Local(str(tmp_path / 'disk'), 1), tmp_path) == -1
  kept = LocalCheckpoints(Local(str(tmp_path / 'disk'), 1), tmp_path)
  token = json.loads((tmp_path / TOKEN).read_text())['token']
  assert kept.directory == tmp_path / 'disk' / token / 'process_0'
  kept.close()


@pytest.mark.parametrize(
  ('path', 'every', 'said'), [('disk', 0, 'every 0 steps'), ('file/disk', 1, 'cannot be kept in .*file/disk: Not a')]
)
def test_what_cannot_be_is_said_at_once(path, every, said, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=said):
    LocalCheckpoints(Local(str(tmp_path / path), every), tmp_path)


def test_a_full_disk_is_one_line(mesh, tmp_path, monkeypatch):
  def full(self):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(LocalCheckpoints, '_write_note', full)
  with pytest.raises(CheckpointError, match=r'local checkpoint could not be saved in .*leave out --local-checkpoints'):
    train(_experiment(mesh), tmp_path / 'run', local=Local(str(tmp_path / 'disk'), EVERY))
