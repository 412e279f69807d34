"""Datasets of latents: written over a mesh, resumed, read, and refused for another autoencoder."""

import os
import pathlib
import random
import signal
import subprocess
import sys

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
from jaxgen.data.datasets.latents import latents, nulls
from jaxgen.data.loader import Loader
from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.models.latents import Autoencoder, Scaling, posterior, scaled
from jaxgen.objectives import conditioning
from jaxgen.pretrained import autoencoder as pretrained
from jaxgen.pretrained import text_encoder
from tests import pipelines

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


ENCODE = """
import os, sys
import jaxgen.encode as encode; encode.encode.__kwdefaults__['shard'] = 64  # 18 shards of 64 images
from jaxgen.cli import main as cli
changes, last = 0, int(os.environ.get('LAST_CHANGE', 0))
def hook(event, args):
  global changes
  if event in ('open', 'os.rename', 'os.mkdir') and '_latents.partial' in str(args[0]):
    changes += 1
    if changes == last: os.kill(os.getpid(), 9)
sys.addaudithook(hook)
sys.exit(cli.main())
"""


def _end_of(place, last_change: int) -> int:
  """The exit code of a process that encodes, and kills itself over its n-th change in the folder of shards."""
  arguments = ['--data', 'emoji32', '--autoencoder', place / 'ae', '--batch-size', '4', '--data-dir', place]
  command = [sys.executable, '-c', ENCODE, 'data', 'encode', *map(str, arguments)]
  root = pathlib.Path(__file__).resolve().parents[1]
  env = os.environ | {'JAX_NUM_CPU_DEVICES': '1', 'LAST_CHANGE': str(last_change)}
  return subprocess.run(command, cwd=root, env=env, stdout=subprocess.PIPE, check=False).returncode


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_no_byte(made, tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  for place in (whole, killed):
    pretrained.save(place / 'ae', made.net, made.params, SCALING)
  assert _end_of(whole, 0) == 0
  moments, landed = random.Random(0), []
  for _ in range(6):
    assert _end_of(killed, moments.randrange(1, 16)) == -signal.SIGKILL
    landed.append(len(list(killed.glob('emoji32_latents.partial/.notes/*.json'))))
  print(f'killed with {landed} shards of 18 on the disk')
  assert _end_of(killed, 0) == 0
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
  _encode(made, tmp_path, fields={'image': encoding.Latents(encoding.sample)}, flips=False)
  dataset = latents('things_latents', autoencoder=made.hash, data_dir=tmp_path)
  assert dataset.num_examples == NUM
  assert dataset.read(0).keys() == {'image', 'label', 'caption'}


TABLE = np.random.default_rng(2).standard_normal((64, 3)).astype(np.float32)


def _letters() -> text_encoder.TextEncoder:
  """Stands for a text encoder: a row of a table for each letter."""

  def encode(params, frozen, fields, keys):
    return {'text': frozen['table'][fields['text']], 'text_mask': fields['text'] > 0}

  def tokenize(texts):
    return {
      'text': np.asarray([[ord(letter) % 64 for letter in text[:12].ljust(12, '\0')] for text in texts], np.int32)
    }

  conditioner = conditioning.Conditioner({'text': conditioning.Field(np.zeros(12, np.int32))}, {}, encode)
  return text_encoder.TextEncoder(conditioner, tokenize, {'table': TABLE}, 'letters')


def _pairs() -> Dataset:
  """Images with an edited one, a control image, and fields of several kinds."""
  rng = np.random.default_rng(4)

  def record(i):
    image, edited, control = (rng.uniform(-1, 1, (8, 8, 3)).astype(np.float32) for _ in range(3))
    kept = {'control': control, 'mask': np.int32([i, 1]), 'weight': np.float32(i / 3), 'good': np.bool_(i % 2)}
    return {'image': image, 'edited': edited, **kept, 'number': i, 'caption': f'number {i}\nn {i}', 'author': 'né ' * i}

  return Dataset('pairs', 'train', [record(i) for i in range(9)], dict, 'pairs')


def test_every_field_is_kept_and_those_that_are_named_are_encoded(made, tmp_path):
  source = _pairs()
  fields = {'image': encoding.Latents(), 'edited': encoding.Latents(encoding.mean, scaled=True)}
  options = {'name': 'pairs_latents', 'mesh': sharding.make_mesh(data=2, fsdp=4), 'batch_size': 8, 'data_dir': tmp_path}
  encoding.encode([source], made, fields=fields, text=_letters(), **options)
  dataset = latents('pairs_latents', autoencoder=made.hash, data_dir=tmp_path)
  edited = np.stack([record['edited'] for record in source.source])
  both = jnp.asarray(np.stack([edited, edited[:, :, ::-1]], axis=1).reshape(-1, 8, 8, 3))
  wanted = scaled(made.frozen, jax.jit(lambda x: posterior(made.net, made.frozen, x))(both)[0]).reshape(9, 2, 4, 4, 2)
  seen = set()
  for index in range(dataset.num_examples):
    record = dataset.read(index)
    i = int(record['number'])
    given = source.source[i]
    assert record.keys() == given.keys() | {'std', 'text', 'text_mask'}
    mirrored = int(not np.array_equal(record['control'], given['control']))
    np.testing.assert_array_equal(record['control'], given['control'][:, :: -1 if mirrored else 1])
    np.testing.assert_allclose(record['edited'], wanted[i, mirrored], rtol=1e-3, atol=2e-3)
    for name in ('mask', 'weight', 'good'):
      assert np.asarray(record[name]).dtype == given[name].dtype
      np.testing.assert_array_equal(record[name], given[name])
    assert (record['caption'], record['author']) == (given['caption'], given['author'])
    ids = [_letters().tokenize([line])['text'][0] for line in given['caption'].split('\n')]
    (which,) = [j for j, row in enumerate(ids) if np.allclose(record['text'], TABLE[row], atol=1e-2)]
    np.testing.assert_array_equal(record['text_mask'], ids[which] > 0)
    seen.add((i, mirrored))
  assert len(seen) == 18
  none = nulls('pairs_latents', data_dir=tmp_path)
  np.testing.assert_allclose(none['text'], np.tile(TABLE[0], (12, 1)), atol=1e-2)
  assert not none['text_mask'].any()
  batch = {name: jnp.stack([jnp.asarray(dataset.read(i)[name]) for i in range(4)]) for name in ('text', 'text_mask')}
  conditioner = conditioning.encoded(none, drop_rate=0.5)
  cond, dropped = conditioner.dropped({}, {}, batch, drop_key=jax.random.key(1), encode_key=jax.random.key(0))
  assert 0 < int(dropped.sum()) < 4
  np.testing.assert_array_equal(cond['text_mask'].any(axis=1), ~dropped)
  with pytest.raises(ValueError, match=r'holds other latents \(fields, kept, text differ\)'):
    encoding.encode([source], made, **options)


def test_with_text_a_killed_run_ends_with_the_same_bytes(made, tmp_path, monkeypatch):
  whole = _encode(made, tmp_path / 'whole', text=_letters(), shard=8)
  with monkeypatch.context() as patch:
    patch.setattr(shard_writer._Place, 'finish', lambda *_: None)
    _encode(made, tmp_path, text=_letters(), shard=8)
  path = _encode(made, tmp_path, text=_letters(), shard=8)
  assert 'nulls.npz' in _files(path)
  assert _files(path) == _files(whole)


def test_a_dataset_without_text_has_no_nulls(written):
  with pytest.raises(FileNotFoundError, match='encode the dataset with --text-encoder FOLDER'):
    nulls('things_latents', data_dir=written[0])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'edited': encoding.Latents()}, "wanted 'image' among them"),
    ({'image': encoding.Latents(), 'mask': encoding.Latents()}, "'mask' of pairs is int32"),
    ({'image': encoding.Latents(), 'depth': encoding.Latents()}, "no field 'depth'; it has author, caption, control"),
  ],
)
def test_a_field_that_is_no_image_is_refused(made, tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    encoding.encode(
      [_pairs()], made, name='x', mesh=sharding.make_mesh(), batch_size=8, fields=fields, data_dir=tmp_path
    )


def test_scaled_images_are_opened_by_who_asks_for_them(made, tmp_path):
  _encode(made, tmp_path, fields={'image': encoding.Latents(encoding.mean, scaled=True)}, flips=False)
  with pytest.raises(ValueError, match=r'are scaled, and this run wants them not to be.*--field image=FORM`'):
    latents('things_latents', autoencoder=made.hash, data_dir=tmp_path)
  stored = latents('things_latents', autoencoder=made.hash, scaled=True, data_dir=tmp_path).read(0)
  (image,) = [record['image'] for record in _dataset().source if record['caption'] == stored['caption']]
  wanted = scaled(made.frozen, posterior(made.net, made.frozen, jnp.asarray(image[None]))[0])[0]
  np.testing.assert_allclose(stored['image'], wanted, rtol=1e-3, atol=2e-3)


def test_published_text_encoders_by_themselves_and_of_a_pipeline(tmp_path):
  pytest.importorskip('tokenizers')
  pipelines.write('sdxl', tmp_path / 'sdxl')
  whole = text_encoder.load(tmp_path / 'sdxl')
  ids = {name: jnp.asarray(value) for name, value in whole.tokenize(['a red cat']).items()}
  assert set(ids) == {'text', 'text_weight', 'text_2', 'text_2_weight'}
  made, none = jax.jit(lambda frozen: (whole.encode(frozen, ids), whole.nulls(frozen)))(whole.frozen)
  assert {name: entry.shape for name, entry in made.items()} == {'text': (1, 77, 32), 'pooled': (1, 12)}
  assert {name: entry.shape for name, entry in none.items()} == {'text': (77, 32), 'pooled': (12,)}
  assert not none['text'].any()
  lone = text_encoder.load(tmp_path / 'sdxl' / 'text_encoder_2', tokenizer=tmp_path / 'sdxl' / 'tokenizer_2', length=9)
  ids = {name: jnp.asarray(value) for name, value in lone.tokenize(['a red cat']).items()}
  first, none = jax.jit(lambda frozen: (lone.encode(frozen, ids), lone.nulls(frozen)))(lone.frozen)
  assert first['text'].shape == (1, 9, 16) and none['text'].shape == (9, 16)
  # It does not see what is behind the end.
  np.testing.assert_allclose(first['pooled'], made['pooled'], rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match='has tokenizers and lengths of its own'):
    text_encoder.load(tmp_path / 'sdxl', length=9)
  with pytest.raises(ValueError, match='wanted a text encoder'):
    text_encoder.load(tmp_path / 'sdxl' / 'unet')


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
  with pytest.raises(ValueError, match='--field image=median: wanted NAME=FORM'):
    command.main([*arguments, '--field', 'image=median'])
  with pytest.raises(ValueError, match='add --text-encoder FOLDER'):
    command.main([*arguments, '--tokens', '12'])


def test_the_command_with_a_text_encoder(made, tmp_path, capsys, monkeypatch):
  pytest.importorskip('tokenizers')
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path))
  pipelines.write('sdxl', tmp_path / 'sdxl')
  folder, tokenizer = tmp_path / 'sdxl' / 'text_encoder_2', tmp_path / 'sdxl' / 'tokenizer_2'
  hash_of_weights = pretrained.save(tmp_path / 'ae', made.net, made.params, SCALING)
  monkeypatch.setattr('jaxgen.distributed.start', lambda *_: None)
  monkeypatch.setitem(sources.NAMED, 'emoji32', lambda split, data_dir=None: _pairs())
  options = ('--autoencoder', str(tmp_path / 'ae'), '--name', 'told', '--batch-size', '8', '--field', 'edited=mode')
  words = ('--text-encoder', str(folder), '--tokenizer', str(tokenizer), '--tokens', '9')
  assert command.main(['encode', '--data', 'emoji32', *options, *words]) == 0
  assert 'told' in capsys.readouterr().out
  record, none = latents('told', autoencoder=hash_of_weights).read(0), nulls('told')
  assert record['edited'].shape == record['image'].shape == (4, 4, 2)
  loaded = text_encoder.load(folder, tokenizer=tokenizer, length=9)
  texts = [*record['caption'].split('\n'), '']
  ids = {name: jnp.asarray(value) for name, value in loaded.tokenize(texts).items()}
  alone = jax.jit(lambda frozen: loaded.encode(frozen, ids))(loaded.frozen)
  assert min(np.abs(alone['text'][i] - record['text']).max() for i in range(2)) < 1e-2
  np.testing.assert_allclose(none['text'], alone['text'][2], atol=1e-2)
