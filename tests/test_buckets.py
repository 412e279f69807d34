"""A run's folder in a bucket: gs:// paths go through etils.epath, here to a folder that plays the bucket store."""

import importlib
import json
import os

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem

from jaxgen import report
from jaxgen.checkpoint import Checkpoints, Policy
from jaxgen.cli.config import load_run
from jaxgen.cli.main import main
from jaxgen.train import train
from jaxgen.writer import Writer, read_metrics, save_png
from tests import toys


class Buckets(DirFileSystem):
  """gs://NAME/... is a file below a folder. Like Cloud Storage it cannot append, and has whole objects only."""

  root = ''
  writes: list[str] = []  # noqa: RUF012  what was written, in order

  def __init__(self, **_):
    super().__init__(path=self.root, fs=fsspec.filesystem('file'))

  @classmethod
  def _strip_protocol(cls, path):
    return path.removeprefix('gs://') if isinstance(path, str) else path

  def open(self, path, mode='rb', **options):
    if 'a' in mode or '+' in mode:
      raise NotImplementedError('objects cannot be appended to')
    if 'w' in mode:
      self.makedirs(os.path.dirname(path), exist_ok=True)
      self.writes.append(path)
    return super().open(path, mode, **options)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  monkeypatch.setattr(Buckets, 'root', str(tmp_path / 'buckets'))
  monkeypatch.setattr(Buckets, 'writes', [])
  Buckets.clear_instance_cache()
  monkeypatch.setitem(importlib.import_module('fsspec.registry')._registry, 'gcs', Buckets)
  backend.fsspec_backend._get_filesystem.cache_clear()
  # TensorBoard has its own way into a bucket, by Google's client.
  monkeypatch.setattr('jaxgen.writer._tensorboard', lambda folder, step: None)
  yield tmp_path / 'buckets' / 'mine'
  backend.fsspec_backend._get_filesystem.cache_clear()


def _write(workdir, resume_step=None, steps=(2, 4)):
  with Writer(workdir, resume_step=resume_step) as writer:
    writer.config({'name': 'tiny_config', 'config': {}})
    for step in steps:
      writer.scalars(step, {'loss': 1.0 / step})
      writer.progress(step, 8, {'loss': 1.0 / step})
      writer.images(step, 'samples', np.full((4, 4, 4, 3), 9 * step, np.uint8))
      assert [record['step'] for record in read_metrics(f'{workdir}/metrics.jsonl')][-1] == step
    writer.protocol('fid', {'samples': 8})
    writer.text('many', name='parameters')
  return report.write(workdir)


def test_a_runs_folder_in_a_bucket_is_the_one_on_a_disk(bucket, tmp_path):
  page = _write('gs://mine/runs/a')
  assert os.fspath(page) == 'gs://mine/runs/a/report.html'
  _write(tmp_path / 'local')
  here, there = ({p.relative_to(f) for f in (folder,) for p in f.rglob('*.*')} for folder in
                 (tmp_path / 'local', bucket / 'runs' / 'a'))  # fmt: skip
  assert here == there
  assert not any('.tmp' in path for path in Buckets.writes)
  for name in ('metrics.jsonl', 'protocols.json', 'parameters.txt', 'samples/samples_00000004.png'):
    assert (bucket / 'runs' / 'a' / name).read_bytes() == (tmp_path / 'local' / name).read_bytes()


def test_a_run_in_a_bucket_goes_on_from_its_checkpoint(bucket):
  _write('gs://mine/b', steps=(2, 4, 6))
  _write('gs://mine/b', resume_step=4, steps=(6, 8))
  losses = [(record['step'], record['loss']) for record in read_metrics('gs://mine/b/metrics.jsonl')]
  assert losses == [(step, 1 / step) for step in (2, 4, 6, 8)]
  assert sorted(p.name for p in (bucket / 'b' / 'samples').iterdir())[-1] == 'samples_00000008.png'
  _write('gs://mine/b', steps=(2,))
  assert [p.name for p in (bucket / 'b' / 'samples').iterdir()] == ['samples_00000002.png']


def test_the_whole_loop_runs_with_its_folder_in_a_bucket(bucket, tmp_path, monkeypatch):
  # Arrays go to a bucket by TensorStore's own client, so checkpoints are put on the disk here.
  asked = []

  def checkpoints(directory, policy=None):
    asked.append(os.fspath(directory))
    return Checkpoints(tmp_path / 'checkpoints', policy)

  monkeypatch.setattr('jaxgen.train.Checkpoints', checkpoints)
  state = train(toys.experiment(steps=8), 'gs://mine/c')
  assert asked == ['gs://mine/c/checkpoints']
  again = train(toys.experiment(steps=8), 'gs://mine/c')
  jax.tree.map(np.testing.assert_array_equal, state, again)
  assert [record['step'] for record in read_metrics(bucket / 'c' / 'metrics.jsonl')] == [2, 4, 6, 8]
  assert json.loads((bucket / 'c' / 'status.json').read_text())['step'] == 8
  assert (bucket / 'c' / 'report.html').exists()


def test_checkpoints_are_asked_for_where_the_bucket_is(monkeypatch):
  asked = []
  monkeypatch.setattr('orbax.checkpoint.CheckpointManager', lambda directory, **_: asked.append(directory))
  Checkpoints(epath.Path('gs://mine/d') / 'checkpoints', Policy())
  assert [os.fspath(path) for path in asked] == ['gs://mine/d/checkpoints']


def test_the_program_takes_a_bucket_for_a_run(bucket, capsys):
  _write('gs://mine/e')
  assert main(['report', '--run', 'gs://mine/e']) == 0
  assert capsys.readouterr().out.endswith('gs://mine/e/report.html\n')
  with pytest.raises(FileNotFoundError, match=r'gs://mine/none is not the folder of a run'):
    load_run('gs://mine/none')
  save_png('gs://mine/e/one.png', np.zeros((2, 2, 1), np.uint8))
  assert (bucket / 'e' / 'one.png').read_bytes().startswith(b'\x89PNG')


def test_what_must_be_on_the_machine_is_refused_in_a_bucket(monkeypatch, capsys):
  monkeypatch.setenv('JAXGEN_HOME', 'gs://mine/home')
  assert main(['weights', 'list']) == 2
  assert 'JAXGEN_HOME is gs://mine/home; it must be a folder of this machine' in capsys.readouterr().err
