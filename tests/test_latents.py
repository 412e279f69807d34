"""Datasets of latents: written over a mesh, resumed, read, and refused for another autoencoder."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import encode as encoding
from jaxgen import sharding
from jaxgen.cli import data as command
from jaxgen.cli.main import is_message
from jaxgen.data import shard_writer, sources
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.latents import latents
from jaxgen.data.loader import Loader
from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.models.latents import Autoencoder, Scaling, posterior
from jaxgen.pretrained import autoencoder as pretrained

SCALING = Scaling(np.float32([0.1, -0.2]), np.float32([2, 3]))
NUM = 21


@pytest.fixture(scope='module')
def made() -> Autoencoder:
  net = AutoencoderKL(multipliers=(1, 2), latent=2, width=4, groups=2, blocks=1, middle_attention=False)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), shapes)
  return Autoencoder(net, params, SCALING, 'a' * 64)


def _dataset(split='train'):
  images = np.random.default_rng(1).uniform(-1, 1, (NUM, 8, 8, 3)).astype(np.float32)
  records = [{'image': image, 'label': np.int32(i % 3), 'caption': f'number {i} é'} for i, image in enumerate(images)]
  return Dataset('things', split, records, dict, f'things-{split}', ('a', 'b', 'c'))


def _encode(made, place, **options):
  options = {'mesh': sharding.make_mesh(data=2, fsdp=4), 'batch_size': 8, 'name': 'things_latents', **options}
  return encoding.encode([_dataset()], made, data_dir=place, **options)


def _files(path):
  return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob('*')) if file.is_file()}


@pytest.fixture(scope='module')
def written(made, tmp_path_factory):
  place = tmp_path_factory.mktemp('data')
  return place, _encode(made, place)


def test_every_image_and_its_mirror_is_there_with_mean_and_deviation(made, written):
  place, _ = written
  dataset, source = latents('things_latents', autoencoder=made.hash, data_dir=place), _dataset()
  assert (dataset.num_examples, dataset.class_names) == (2 * NUM, ('a', 'b', 'c'))
  images = np.stack([record['image'] for record in source.source])
  both = np.stack([images, images[:, :, ::-1]], axis=1).reshape(-1, *images.shape[1:])
  mean, std = jax.jit(lambda x: posterior(made.net, made.frozen, x))(jnp.asarray(both))
  left = {(int(i // 2) % 3, f'number {i // 2} é', i % 2): i for i in range(2 * NUM)}
  assert dataset.read(0)['image'].dtype == np.float32
  for index in range(dataset.num_examples):
    stored = dataset.read(index)
    candidates = [left[key] for key in left if key[:2] == (int(stored['label']), stored['caption'])]
    nearest = min(candidates, key=lambda i: np.abs(mean[i] - stored['image']).max())
    np.testing.assert_allclose(stored['image'], mean[nearest], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(stored['std'], std[nearest], rtol=1e-3, atol=1e-3)
    left = {key: i for key, i in left.items() if i != nearest}
  assert not left


def test_a_loader_reads_them_as_any_data_set(made, written):
  data = Loader(latents('things_latents', autoencoder=made.hash, data_dir=written[0]), batch_size=8, seed=0)
  assert {name: leaf.shape for name, leaf in data.spec.items()} == {
    'image': (8, 4, 4, 2),
    'std': (8, 4, 4, 2),
    'label': (8,),
  }


class Killed(BaseException):
  pass


@pytest.mark.parametrize('dies', ['in a shard', 'in the end'])
def test_killed_and_started_again_it_ends_with_the_same_bytes(made, written, tmp_path, monkeypatch, dies):
  whole = _encode(made, tmp_path / 'whole', shard=8)
  written, put = [], shard_writer._Place.put

  def dying_put(self, split, s, *rest):
    if len(written) == 2 and dies == 'in a shard':
      raise Killed
    put(self, split, s, *rest)
    written.append(s)

  def dying(self, *_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(shard_writer._Place, 'put', dying_put)
    if dies == 'in the end':
      patch.setattr(shard_writer._Place, 'finish', dying)
    with pytest.raises(Killed):
      _encode(made, tmp_path, shard=8)
  assert written == ([0, 1] if dies == 'in a shard' else [0, 1, 2])
  with monkeypatch.context() as patch:
    patch.setattr(
      shard_writer._Place, 'put', lambda self, split, s, *rest: (put(self, split, s, *rest), written.append(s))
    )
    path = _encode(made, tmp_path, shard=8)
  assert written == [0, 1, 2]
  assert _files(path) == _files(whole)
  assert not (tmp_path / 'things_latents.partial').exists()


def _start(place):
  arguments = ['--data', 'emoji32', '--autoencoder', place / 'ae', '--batch-size', '4', '--data-dir', place]
  command = [sys.executable, '-m', 'jaxgen.cli.main', 'data', 'encode', *map(str, arguments)]
  root = pathlib.Path(__file__).resolve().parents[1]
  return subprocess.Popen(command, cwd=root, env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'}, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_no_byte(made, tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  for place in (whole, killed):
    pretrained.save(place / 'ae', made.net, made.params, SCALING)
  assert _start(whole).wait(timeout=600) == 0
  moments, landed = random.Random(0), []
  for _ in range(6):
    process, partial = _start(killed), killed / 'emoji32_latents.partial'
    before = len(list(partial.glob('.notes/*')))
    while process.poll() is None and len(list(partial.glob('.notes/*'))) == before:
      time.sleep(0.005)
    time.sleep(moments.uniform(0, 1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
      break  # it was done before it was killed
    landed.append(len(list(partial.glob('.notes/*'))))
  print(f'killed with {landed} shards on the disk')
  assert landed
  assert _start(killed).wait(timeout=600) == 0
  assert _files(killed / 'emoji32_latents') == _files(whole / 'emoji32_latents')
  assert not (killed / 'emoji32_latents.partial').exists()


def test_an_image_that_cannot_be_read_stops_it_with_a_message(made, tmp_path):
  def decode(record):
    if record['caption'].startswith('number 13 '):
      raise ValueError('cut off')
    return record

  with pytest.raises(ValueError, match=r'record 13 of things \(train\): cut off') as error:
    encoding.encode(
      [_dataset()._replace(decode=decode)],
      made,
      name='things_latents',
      data_dir=tmp_path,
      mesh=sharding.make_mesh(data=2, fsdp=4),
      batch_size=8,
    )
  assert is_message(error.value)
  assert not (tmp_path / 'things_latents').exists()


def test_latents_in_another_dtype_are_others(made, written):
  half = made._replace(net=made.net.clone(dtype=jnp.bfloat16))
  with pytest.raises(ValueError, match=r'holds other latents \(dtype differ\)'):
    _encode(half, written[0])


def test_shards_of_another_autoencoder_are_not_used(made, tmp_path, monkeypatch):
  other = made._replace(hash='b' * 64)
  with monkeypatch.context() as patch:
    patch.setattr(shard_writer._Place, 'finish', lambda *_: None)
    _encode(made, tmp_path)
  assert list((tmp_path / 'things_latents.partial').glob('*.array_record*'))
  path = _encode(other, tmp_path)
  assert 'b' * 64 in (path / 'metadata.json').read_text()
  with pytest.raises(ValueError, match=r'are of the autoencoder bbbbbbbbbbbb, and this run decodes with aaaaaaaaaaaa'):
    latents('things_latents', autoencoder=made.hash, data_dir=tmp_path)
  with pytest.raises(ValueError, match=r'holds other latents \(autoencoder differ\)'):
    _encode(made, tmp_path)
  with pytest.raises(FileNotFoundError, match='jaxgen data encode'):
    latents('none', autoencoder=made.hash, data_dir=tmp_path)


def test_samples_need_no_deviation(made, tmp_path):
  _encode(made, tmp_path, samples=True, flips=False)
  dataset = latents('things_latents', autoencoder=made.hash, data_dir=tmp_path)
  assert dataset.num_examples == NUM
  assert dataset.read(0).keys() == {'image', 'label', 'caption'}


def test_the_command(made, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path))
  hash_of_weights = pretrained.save(tmp_path / 'ae', made.net, made.params, SCALING)
  monkeypatch.setattr('jaxgen.distributed.start', lambda *_: None)
  monkeypatch.setitem(sources.NAMED, 'emoji32', lambda split, data_dir=None: _dataset(split))
  arguments = ['encode', '--data', 'emoji32', '--autoencoder', str(tmp_path / 'ae'), '--batch-size', '8', '--no-flips']
  assert command.main(arguments) == 0
  assert 'emoji32_latents' in capsys.readouterr().out
  assert latents('emoji32_latents', autoencoder=hash_of_weights).num_examples == NUM
  assert command.main(arguments) == 0  # it is there already
