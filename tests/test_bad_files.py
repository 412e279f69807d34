"""Damaged, wrong and hostile files, through the program: one line that says what is wrong, and nothing is touched."""

import json
import pathlib
import pickle
import re
import shutil
import zipfile

import jax
import numpy as np
import pytest

from jaxgen.cli.main import main
from jaxgen.data import sources
from jaxgen.data.dataset import Dataset
from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.models.latents import unscaled
from jaxgen.pretrained import autoencoder, folder, layout, lpips, safetensors_file, torch_file

NET = AutoencoderKL(multipliers=(1,), latent=2, width=4, groups=2, blocks=0, middle_attention=False)
STEM = folder.STEM
CONV = 'encoder.conv_in.weight'
NO_TENSORS = r'holds no state dict: .* is a .*getattr, not a tensor'


class Hostile:
  """What unpickling makes a file of."""

  def __init__(self, marker: pathlib.Path):
    self.marker = marker

  def __reduce__(self):
    return pathlib.Path.touch, (self.marker,)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A folder with an autoencoder in `ae`, and its tensors in `ae.safetensors`."""
  made = tmp_path_factory.mktemp('whole')
  shapes = jax.eval_shape(NET.init, jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32))['params']
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
  autoencoder.save(made / 'ae', NET, params, unscaled(2))
  _save(made / 'ae.safetensors', layout.tensors(autoencoder.original(NET), params))
  return made


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
  """A copy of it, beside jaxgen's own folder, `home`."""
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  monkeypatch.setattr(autoencoder, 'published', lambda name: NET)
  monkeypatch.setattr('jaxgen.distributed.start', lambda *_: None)
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  return tmp_path


def _save(path, tensors):
  safetensors_file.write(path, tensors, metadata={})


def _pickle(path, content):
  path.unlink(missing_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('m/data.pkl', pickle.dumps(content, protocol=2))


def _cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def _misshape(path):
  _save(path, safetensors_file.read(path) | {CONV: np.zeros((7, 7), np.float32)})


def _refused(arguments, place, message, capsys):
  """The program ends with one line, and every file is as it was."""
  before = _files(place)
  assert main([str(argument) for argument in arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith('jaxgen: error: ') and error.count('\n') == 1, error
  assert re.search(message, error), error
  assert _files(place) == before


def _files(place):
  made = (path for path in place.rglob('*') if path.is_file() and not path.name.endswith('.lock'))
  return {path: path.read_bytes() for path in made}


def _as_pt(make):
  """Damage to a checkpoint, as that of a .pt in the place of the .safetensors."""

  def damage(file):
    file.unlink()
    make(file.with_suffix('.pt'))

  return damage


def _cut_pickle(path):
  _pickle(path, {})
  _cut(path)


FILES = {  # what happens to a checkpoint, what is said of it
  'cut': (_cut, 'cannot be read as a safetensors file'),
  'shape': (_misshape, r'misshapen: encoder\.conv_in\.weight is \(7, 7\), wanted \(4, 3, 3, 3\)'),
  'gone': (pathlib.Path.unlink, r'No such file.*ae\.safetensors'),
  'cut .pt': (_as_pt(_cut_pickle), r'ae\.pt is cut off or damaged'),
  'hostile': (_as_pt(lambda path: _pickle(path, {'state_dict': Hostile(path.with_name('ran'))})), NO_TENSORS),
  'other pickle': (_as_pt(lambda path: _pickle(path, {'epoch': 3})), 'no state dict: epoch is a int, not a tensor'),
  'list': (_as_pt(lambda path: _pickle(path, ['w'])), 'holds no state dict: it holds a list'),
}


@pytest.mark.parametrize('kind', FILES)
def test_a_checkpoint_that_is_converted(kind, place, capsys):
  damage, message = FILES[kind]
  damage(place / 'ae.safetensors')
  file = next(iter(place.glob('ae.pt')), place / 'ae.safetensors')
  _refused(['weights', 'convert', file, place / 'out', '--network', 'mine'], place, message, capsys)


def test_a_checkpoint_of_a_training_run_is_converted_by_its_parts(place, capsys):
  """As DiT's train.py writes it: 'model', 'ema', 'opt', and 'args', an object of a class that is never imported."""
  file = pathlib.Path(__file__).parent / 'golden' / 'torch_files' / 'training_run.pt'
  for part, first in (('ema', 0.56298256), ('model', 0.3203612)):
    tensors = torch_file.state_dict(file, part=part)
    assert tensors['encoder.conv_in.weight'].flat[0] == np.float32(first)
  arguments = ['weights', 'convert', file, place / 'out', '--network', 'mine']
  _refused([*arguments, '--part', 'opt'], place, 'no state dict: state is a dict, not a tensor', capsys)
  _refused([*arguments, '--part', 'x'], place, "no state dict 'x'; its parts with tensors are model, ema", capsys)
  _refused([*arguments, '--part', 'ema'], place, r'54 missing: .* and 49 more', capsys)


def _index(path, text):
  (path / f'{STEM}.safetensors').unlink()
  (path / f'{STEM}.safetensors.index.json').write_text(text)


def _old(path, content):
  (path / f'{STEM}.safetensors').unlink()
  _pickle(path / f'{STEM}.bin', content)


def _without(path, entry):
  config = json.loads((path / 'config.json').read_text())
  del config[entry]
  (path / 'config.json').write_text(json.dumps(config))


FOLDERS = {  # what happens to a folder, what is said of it
  'cut': (lambda path: _cut(path / f'{STEM}.safetensors'), 'cannot be read as a safetensors file'),
  'shape': (lambda path: _misshape(path / f'{STEM}.safetensors'), r'misshapen: encoder\.conv_in\.weight is \(7, 7\)'),
  'no weights': (lambda path: (path / f'{STEM}.safetensors').unlink(), r'has no diffusion_pytorch_model\.safetensors'),
  'no config': (lambda path: (path / 'config.json').unlink(), r'config\.json does not exist'),
  'cut config': (lambda path: (path / 'config.json').write_text('{"_class'), 'is no configuration of a model'),
  'poor config': (lambda path: _without(path, 'block_out_channels'), r'config\.json lacks block_out_channels'),
  'cut index': (lambda path: _index(path, '{"weight_map": {'), r'index\.json is no index of safetensors files'),
  'other index': (lambda path: _index(path, '{"weight_map": ["x"]}'), r'index\.json is no index of safetensors files'),
  'far index': (lambda path: _index(path, '{"weight_map": {"x": "../y"}}'), "names '../y', which is not a file beside"),
  'hostile': (lambda path: _old(path, {'w': Hostile(path.with_name('ran'))}), NO_TENSORS),
  'other pickle': (lambda path: _old(path, {'w': {'v': 1}}), 'no state dict: w is a dict, not a tensor'),
}


@pytest.mark.parametrize('kind', FOLDERS)
def test_an_autoencoder_that_encodes(kind, place, capsys, monkeypatch):
  dataset = Dataset('e', 'train', [np.zeros((4, 4, 3), np.float32)], lambda image: {'image': image}, 'e')
  monkeypatch.setitem(sources.NAMED, 'emoji32', lambda split, data_dir=None: dataset)
  damage, message = FOLDERS[kind]
  damage(place / 'ae')
  _refused(['data', 'encode', '--data', 'emoji32', '--autoencoder', place / 'ae'], place, message, capsys)


@pytest.mark.parametrize(
  ('side', 'channels', 'message'),
  [(4, 1, 'images of 1 channels; the autoencoder takes 3'), (3, 3, '3x3, which do')],
)
def test_images_that_do_not_fit_the_autoencoder(side, channels, message, place, capsys, monkeypatch):
  net = NET.clone(multipliers=(1, 1))
  shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32))['params']
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
  autoencoder.save(place / 'ae', net, params, unscaled(2))
  dataset = Dataset('e', 'train', [np.zeros((side, side, channels), np.float32)], lambda image: {'image': image}, 'e')
  monkeypatch.setitem(sources.NAMED, 'emoji32', lambda split, data_dir=None: dataset)
  arguments = ['data', 'encode', '--data', 'emoji32', '--autoencoder', place / 'ae']
  _refused(arguments, place, message, capsys)


def _zeros(path, **changes):
  _save(path, {name: np.zeros(shape, np.float32) for name, shape in lpips.shapes().items()} | changes)


WEIGHTS = {  # a file that is given for named weights, what is said of it
  'numbers': ('a.safetensors', _zeros, 'has the shape of the lpips weights, but other numbers'),
  'shape': ('a.safetensors', lambda path: _save(path, {'w': np.zeros(3)}), r'unexpected: w \(3,\)'),
  'cut': ('a.safetensors', lambda path: (_save(path, {'w': np.zeros(3)}), _cut(path)), 'cannot be read as a'),
  'no archive': ('a.tar.gz', lambda path: path.write_bytes(b'\x1f\x8b\x08'), r'a\.tar\.gz is cut off or damaged'),
}


@pytest.mark.parametrize('kind', WEIGHTS)
def test_a_file_that_is_given_for_named_weights(kind, place, capsys):
  name, make, message = WEIGHTS[kind]
  make(place / name)
  (place / 'home' / 'weights').mkdir(parents=True)
  (place / 'home' / 'weights' / 'lpips.safetensors').write_bytes(b'what is there')
  _refused(['weights', 'get', 'lpips', '--from', place / name], place, message, capsys)


def test_a_hostile_file_that_is_given_for_named_weights(place, capsys):
  _pickle(place / 'inception.pth', {'w': Hostile(place / 'ran')})
  _refused(
    ['weights', 'get', 'inception', '--from', place / 'inception.pth'], place, 'is not the FID Inception', capsys
  )


def test_the_hostile_pickles_would_run(tmp_path):
  pickle.loads(pickle.dumps(Hostile(tmp_path / 'ran'), protocol=2))
  assert (tmp_path / 'ran').exists()
