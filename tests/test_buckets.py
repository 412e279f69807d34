"""A run's folder in a bucket: gs:// paths go through etils.epath, here to a folder that plays the bucket store."""

import importlib
import json
import os
import shutil

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem

from jaxgen import data, home, report, sharding
from jaxgen.checkpoint import Checkpoints, Policy
from jaxgen.cli.config import load_run
from jaxgen.cli.main import main
from jaxgen.data import shard_writer
from jaxgen.data.datasets import latents
from jaxgen.data.job import ALONE, Numbered
from jaxgen.evaluators import reconstruction
from jaxgen.evaluators.base import Context
from jaxgen.image_grid import save_png
from jaxgen.metrics import reference
from jaxgen.metrics.statistics import Moments
from jaxgen.metrics_file import read_metrics
from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.pretrained import autoencoder, folder, inception, safetensors_file, weights
from jaxgen.train import train
from jaxgen.train_state import TrainState
from jaxgen.writer import Writer, silent
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
  monkeypatch.setattr('jaxgen.event_files.EventFiles._add', lambda self, **fields: None)
  yield tmp_path / 'buckets' / 'mine'
  backend.fsspec_backend._get_filesystem.cache_clear()


def _write(workdir, resume_step=None, steps=(2, 4)):
  with Writer(workdir, resume_step=resume_step) as writer:
    writer.config({'name': 'tiny_config', 'config': {}})
    for step in steps:
      writer.scalars(step, {'loss': 1.0 / step})
      writer.progress(step, 8, {'loss': 1.0 / step})
      writer.images(step, 'samples', np.full((4, 4, 4, 3), 9 * step, np.uint8))
      writer.sync()
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


def test_metrics_in_a_bucket_grow_by_parts_that_are_read_as_one(bucket, monkeypatch):
  monkeypatch.setattr('jaxgen.metrics_file._PART_BYTES', 2000)
  monkeypatch.setattr('jaxgen.metrics_file._UPLOAD_SECONDS', 0.0)
  path = 'gs://mine/h/metrics.jsonl'

  def steps():
    return [record['step'] for record in read_metrics(path)]

  with Writer('gs://mine/h') as writer:
    Buckets.writes.clear()
    for step in range(1, 401):
      writer.scalars(step, {'loss': 1.0 / step})
      if step % 40 == 0:
        writer.sync()
        assert steps() == list(range(1, step + 1))
    parts = sorted(p.name for p in (bucket / 'h').glob('metrics.*.jsonl'))
    assert 5 <= len(parts) < 12  # one in 40 or 80 lines: uploads that find another under way are left to it
    assert all((bucket / 'h' / part).stat().st_size < 4000 for part in parts)
    assert path not in Buckets.writes  # what was uploaded once is not uploaded again
    shutil.copytree(bucket / 'h', bucket / 'killed')
    last = bucket / 'h' / 'metrics.jsonl'
  assert steps() == list(range(1, 401))
  assert [p.name for p in (bucket / 'h').glob('metrics*')] == ['metrics.jsonl']

  for at in (399, 250, 100):  # killed before the parts were merged, and each time goes on from an earlier step
    with Writer('gs://mine/killed', resume_step=at) as writer:
      writer.scalars(500, {'loss': 0.0})
      writer.sync()
      shutil.copytree(bucket / 'killed', bucket / 'killed_again')
    shutil.rmtree(bucket / 'killed')
    (bucket / 'killed_again').rename(bucket / 'killed')
    assert [r['step'] for r in read_metrics('gs://mine/killed/metrics.jsonl')] == [*range(1, at + 1), 500]

  # Killed over the merge: the lines are in the file, and the parts are still there.
  shutil.copy(last, bucket / 'killed' / 'metrics.jsonl')
  for number, part in enumerate(parts):
    begin = int(part.split('.')[1])
    (bucket / 'killed' / part).write_bytes(b''.join(last.read_bytes().splitlines(True)[begin : begin + 1 + number]))
  assert [r['step'] for r in read_metrics('gs://mine/killed/metrics.jsonl')] == list(range(1, 401))


def test_a_bucket_that_fails_for_a_while_loses_no_metrics(bucket, monkeypatch, capsys):
  monkeypatch.setattr('jaxgen.metrics_file._UPLOAD_SECONDS', 0.0)
  monkeypatch.setattr('jaxgen.metrics_file._RETRIES', (0.01, 0.01))
  write, fails = Buckets.open, []

  def flaky(self, path, mode='rb', **options):
    if 'w' in mode and 'metrics' in path and fails:
      fails.pop()
      raise TimeoutError('503 backend error')
    return write(self, path, mode, **options)

  monkeypatch.setattr(Buckets, 'open', flaky)
  with Writer('gs://mine/i') as writer:
    fails += [1, 1]  # the third try succeeds
    writer.scalars(1, {'loss': 1.0})
    writer.sync()
    assert (writer.failures, len(read_metrics('gs://mine/i/metrics.jsonl'))) == (0, 1)
    fails += 6 * [1]
    writer.scalars(2, {'loss': 1.0})
    writer.sync()
    assert writer.failures == 2
    writer.scalars(3, {'loss': 1.0})
    writer.sync()
    assert [record['step'] for record in read_metrics('gs://mine/i/metrics.jsonl')] == [1, 2, 3]
  assert capsys.readouterr().out.count('Warning: the upload of metrics failed, and the run goes on: Timeout') == 1


def test_the_whole_loop_runs_with_its_folder_in_a_bucket(bucket, tmp_path, monkeypatch):
  # Arrays go to a bucket by TensorStore's own client, so checkpoints are put on the disk here.
  opened = []

  def checkpoints(directory, policy=None):
    opened.append(os.fspath(directory))
    return Checkpoints(tmp_path / 'checkpoints', policy)

  monkeypatch.setattr(importlib.import_module('jaxgen.train'), 'Checkpoints', checkpoints)
  state = train(toys.experiment(steps=8), 'gs://mine/c')
  assert opened == ['gs://mine/c/checkpoints']
  again = train(toys.experiment(steps=8), 'gs://mine/c')
  jax.tree.map(np.testing.assert_array_equal, state, again)
  assert [record['step'] for record in read_metrics(bucket / 'c' / 'metrics.jsonl')] == [2, 4, 6, 8]
  assert json.loads((bucket / 'c' / 'status.json').read_text())['step'] == 8
  assert (bucket / 'c' / 'report.html').exists()


def test_checkpoints_are_asked_for_where_the_bucket_is(monkeypatch):
  opened = []
  monkeypatch.setattr('orbax.checkpoint.CheckpointManager', lambda directory, **_: opened.append(directory))
  Checkpoints(epath.Path('gs://mine/d') / 'checkpoints', Policy())
  assert [os.fspath(path) for path in opened] == ['gs://mine/d/checkpoints']


def test_the_program_takes_a_bucket_for_a_run(bucket, capsys):
  _write('gs://mine/e')
  assert main(['report', '--run', 'gs://mine/e']) == 0
  assert capsys.readouterr().out.endswith('gs://mine/e/report.html\n')
  with pytest.raises(FileNotFoundError, match=r'gs://mine/none is not the folder of a run'):
    load_run('gs://mine/none')
  save_png('gs://mine/e/one.png', np.zeros((2, 2, 1), np.uint8))
  assert (bucket / 'e' / 'one.png').read_bytes().startswith(b'\x89PNG')


@pytest.fixture
def hosts(bucket, tmp_path, monkeypatch):
  """`host(name)`: from now on this is a machine of that name, with a disk of its own."""
  monkeypatch.setenv('JAXGEN_HOME', 'gs://mine/home')
  return lambda name: monkeypatch.setenv('HOME', str(tmp_path / name))


def test_what_one_host_made_another_finds_in_a_home_in_a_bucket(hosts, bucket):
  key = {'dataset': 'a'}
  hosts('first')
  path = reference.cached_path(key)
  assert not path.exists()
  reference.write(path, Moments(3, np.arange(2.0), np.eye(2)), key)
  hosts('second')
  other = reference.cached_path(key)
  assert other != path
  np.testing.assert_array_equal(reference.read(other).mean, [0, 1])
  assert (bucket / 'home' / 'statistics' / path.name).read_bytes() == path.read_bytes()
  assert not [left for left in other.parent.iterdir() if left.name.endswith('.tmp')]


def test_weights_and_programs_come_from_a_home_in_a_bucket(hosts, bucket):
  hosts('first')
  assert home.compilation() == 'gs://mine/home/compilation'
  (bucket / 'home' / 'weights').mkdir(parents=True)
  (bucket / 'home' / 'weights' / 'inception.safetensors').write_bytes(b'x')
  assert inception.default_path().read_bytes() == b'x'
  assert weights.stored('inception').read_bytes() == b'x'
  assert not weights.stored('minilm').exists()


@pytest.mark.parametrize('data_dir', [None, 'gs://mine/data'])
def test_a_recipe_is_prepared_once_for_all_hosts(data_dir, hosts, bucket, tmp_path, monkeypatch):
  (tmp_path / 'in').mkdir()
  for i in range(3):
    save_png(tmp_path / 'in' / f'{i}.png', np.full((8, 8, 3), i, np.uint8))
  hosts('first')
  made = data.prepare_image_folder(tmp_path / 'in', size=8, data_dir=data_dir)
  assert list(bucket.rglob('dataset_info.json'))
  hosts('second')
  monkeypatch.setattr(shard_writer, 'write', None)  # it need not be written again
  images = data.image_folder(tmp_path / 'in', size=8, data_dir=data_dir)
  assert images.num_examples == 3
  found = data.prepare_image_folder(tmp_path / 'in', size=8, data_dir=data_dir)
  assert (found != made, found.exists()) == (True, True)
  assert not (tmp_path / 'gs:').exists()


@pytest.fixture
def kept(bucket):
  """What a run in a bucket leaves of its autoencoder: its folder, the network and its parameters."""
  net = AutoencoderKL(multipliers=(1,), latent=2, width=4, groups=2, blocks=0, middle_attention=False, channels=1)
  shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 2, 4, 1), np.float32))['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
  state = TrainState(step=1, bad_steps=0, params={'autoencoder': params}, opt_state={}, ema={}, extra={})
  keep = reconstruction.keep(net, toys.dataset(8), mesh=sharding.make_mesh(), every=1, batch_size=8, num=8)
  keep.run(Context(1, state, {}, silent(), epath.Path('gs://mine/f')))
  return bucket / 'f' / 'autoencoder', net, params


def test_an_autoencoder_is_kept_in_a_bucket_and_loaded_from_it(kept, tmp_path, monkeypatch):
  place, net, params = kept
  assert {path.name for path in place.iterdir()} == {'config.json', f'{folder.STEM}.safetensors'}
  assert Buckets.writes == ['gs://mine/f/autoencoder/' + name for name in (f'{folder.STEM}.safetensors', 'config.json')]
  copies = tmp_path / 'copies'
  copies.mkdir()
  monkeypatch.setattr('tempfile.tempdir', str(copies))
  loaded = autoencoder.load('gs://mine/f/autoencoder')
  assert loaded.net == net
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  assert loaded.hash == autoencoder.load(place).hash
  assert not list(copies.iterdir())  # nothing is left of what was copied to be read
  tensors = safetensors_file.lazily('gs://mine/f/autoencoder/diffusion_pytorch_model.safetensors')
  assert len(list(copies.iterdir())) == 1
  del tensors
  assert not list(copies.iterdir())
  whole = safetensors_file.read('gs://mine/f/autoencoder/diffusion_pytorch_model.safetensors')
  np.testing.assert_array_equal(whole['encoder.conv_in.bias'], params['encoder']['conv_in']['bias'])


def test_what_is_wrong_in_a_bucket_is_named_as_it_is_on_a_disk(kept):
  place, _, _ = kept
  file = place / f'{folder.STEM}.safetensors'
  with pytest.raises(FileNotFoundError, match=r'gs://mine/none/config\.json does not exist'):
    autoencoder.load('gs://mine/none')
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r'gs://mine/f/autoencoder/\S+ cannot be read as a safetensors file'):
    autoencoder.load('gs://mine/f/autoencoder')
  file.rename(file.with_suffix('.bin'))
  with pytest.raises(ValueError, match=r'gs://mine/f/autoencoder/diffusion_pytorch_model\.bin is no torch file'):
    autoencoder.load('gs://mine/f/autoencoder')


def test_latents_are_written_and_read_in_a_bucket(hosts, bucket, monkeypatch):
  """Two hosts with disks of their own write shards; a third, of which one was killed, finds them whole."""
  identity, place = {'autoencoder': 'a' * 64}, lambda: latents.folder('things_latents', 'gs://mine/data')
  like = {'image': np.zeros((1, 1, 1), np.float16)}
  splits = {'train': Numbered(4, lambda shards: ([like] for shard in shards for _ in shard), shard=2)}
  hosts('first')
  with pytest.raises(FileNotFoundError, match=r'there are no latents things_latents in \S+; make them with'):
    latents.latents('things_latents', autoencoder='b' * 64, data_dir='gs://mine/data')
  with monkeypatch.context() as patch:
    patch.setattr(shard_writer._Place, 'finish', lambda *_: None)
    latents.write(place(), splits, like=like, identity=identity, job=ALONE._replace(count=2))
  hosts('second')
  assert not place().exists()  # one of two shards
  latents.write(place(), splits, like=like, identity=identity)
  hosts('third')
  assert latents.are_there(place(), identity)
  assert latents.latents('things_latents', autoencoder='a' * 64, data_dir='gs://mine/data').num_examples == 4
  assert sorted(path.name for path in (bucket / 'data' / 'things_latents' / latents.VERSION).iterdir()) == [
    'dataset_info.json', 'features.json', 'metadata.json',
    *(f'things_latents-train.array_record-0000{i}-of-00002' for i in range(2)),
  ]  # fmt: skip
  with pytest.raises(ValueError, match=r'are of the autoencoder aaaaaaaaaaaa, and'):
    latents.latents('things_latents', autoencoder='b' * 64, data_dir='gs://mine/data')
