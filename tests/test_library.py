"""jaxgen imported: lazily, beside modules of the same names, and what a run is there."""

import importlib
import io
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import jaxgen
from jaxgen.best import Best
from jaxgen.checkpoint import Checkpoints
from jaxgen.destination import Destination, wandb
from jaxgen.writer import Writer
from tests import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = str(ROOT / 'tests' / 'tiny_config.py')


def test_importing_jaxgen_imports_nothing_heavy_and_offers_what_it_says():
  code = """
import sys, jaxgen
heavy = {'jax', 'flax', 'numpy', 'optax', 'PIL'} & {name.split('.')[0] for name in sys.modules}
assert not heavy, heavy
from jaxgen.train import abstract_state, train
for name in jaxgen.__all__:
  getattr(jaxgen, name)
assert jaxgen.train is not train and jaxgen.train.__module__ == 'jaxgen.library', jaxgen.train
assert jaxgen.evaluate.__module__ == 'jaxgen.library'
assert jaxgen.data.from_arrays and jaxgen.samplers
"""
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  subprocess.run([sys.executable, '-c', code], env=env, check=True, timeout=600)


def test_every_sub_package_that_a_user_may_want_is_there():
  own = {'bench', 'cli', 'plan', 'vote'}  # parts of the program
  packages = {path.parent.name for path in (ROOT / 'jaxgen').glob('*/__init__.py')}
  assert set(jaxgen._MODULES) == packages - own | {'destination'}
  for name in jaxgen._MODULES:
    assert importlib.import_module(f'jaxgen.{name}').__doc__


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of the tiny config, which learns each class's mean."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAXGEN_HOME', str(tmp_path_factory.mktemp('home')))
    return jaxgen.train(TINY, tmp_path_factory.mktemp('runs') / 'tiny', {'steps': 8})


def test_a_run_is_sampled_as_it_was_trained_and_as_it_is_loaded(run, monkeypatch):
  assert run.step == 8
  assert run.class_names == ('dark', 'light')
  assert [record['step'] for record in run.metrics if 'mean' in record] == [2, 4, 6, 8]
  real = np.asarray(Image.open(run.folder / 'data.png'))[2::66, 2::66]
  assert sorted({*real.ravel().tolist()} - {255}) == [64, 191]
  images = run.sample(4, labels=['light', 0])
  assert images.shape == (4, 4, 4, 3)
  assert images.dtype == np.uint8
  assert images[0::2].mean() > images[1::2].mean() + 5
  loaded = jaxgen.load_run(run.folder, config=TINY)
  np.testing.assert_array_equal(loaded.sample(4, labels=['light', 0]), images)
  np.testing.assert_array_equal(loaded.sample(2, labels=['light', 0]), images[:2])
  for ours, theirs in zip(jax.tree.leaves(run.params), jax.tree.leaves(loaded.params), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert (loaded.sample(4, seed=1) != images).any()
  assert jaxgen.grid(images).size == (2 * 66 + 2, 2 * 66 + 2)
  assert repr(loaded) == f'<LoadedRun {run.folder}, step 8: net of 96 parameters>'


def test_a_config_of_a_folder_from_elsewhere_does_not_run(run, monkeypatch, tmp_path):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path))
  with pytest.raises(ValueError, match='pass --trust'):
    jaxgen.load_run(run.folder)
  assert jaxgen.load_run(run.folder, trust_code=True, step=4).step == 4


def test_a_run_without_a_config_is_sampled_from_its_folder_alone(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  config = tiny_config.get_config()
  config.steps = 4
  monkeypatch.setenv('HOME', str(tmp_path))
  made = jaxgen.train(tiny_config.build(config)._replace(evaluators=()), '~/run')
  loaded = jaxgen.load_run('~/run')
  assert (loaded.step, loaded.class_names) == (4, ('dark', 'light'))
  np.testing.assert_array_equal(loaded.sample(19, labels=['light', 0]), made.sample(19, labels=['light', 0]))
  np.testing.assert_array_equal(loaded.sample(3, seed=1), made.sample(3, seed=1))
  plain = jaxgen.load_run(tmp_path / 'run', step=2, average='none')
  assert (plain.sample(2, labels='light') != loaded.sample(2, labels='light')).any()
  with pytest.raises(ValueError, match='made from no config, so it can be sampled alone'):
    loaded.edit(np.zeros((1, 4, 4, 3)))
  with pytest.raises(ValueError, match='training data of this run is not known'):
    _ = loaded.trained.stage.data.dataset
  with pytest.raises(ValueError, match='has no fields'):
    jaxgen.load_run(tmp_path / 'run', {'steps': 2})
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'elsewhere'))
  with pytest.raises(ValueError, match=r'holds a program, .*that you have not trained with here; give trust_code=True'):
    jaxgen.load_run(tmp_path / 'run')
  assert jaxgen.load_run(tmp_path / 'run', trust_code=True).step == 4


@pytest.mark.parametrize(
  ('use', 'message'),
  [
    (lambda run: run.sample(2, labels='green'), "label 'green' is no class of this run"),
    (lambda run: run.sample(2, prompt='a cat'), 'reads no text'),
    (lambda run: run.sample(0), 'num is 0'),
    (lambda run: run.sample(8, batch_size=0), 'batch_size is 0'),
    (lambda run: run.edit(np.zeros((1, 4, 4, 3))), 'does not sample by denoising'),
    (lambda run: run.changed({'stepps': 1}), "did you mean 'steps'"),
    (lambda run: jaxgen.train('tiny_confg', 'x'), 'no config named'),
    (lambda run: jaxgen.train(run.trained.stage), 'needs the folder'),
    (lambda run: jaxgen.evaluate(np.zeros((4, 4, 3))), 'wanted uint8'),
  ],
)
def test_mistakes_are_told(run, use, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    use(run)


def test_fields_change_for_sampling_and_not_the_network(run):
  assert run.changed({'note': 'x'}).config.note == 'x'
  assert run.config.note == 'flat images'


def test_the_best_model_is_kept_without_its_optimizer(run, tmp_path):
  best = Best(epath.Path(tmp_path), 'mean', resumes=False)
  state = run.trained.state
  for step, value in ((2, 0.5), (4, 0.25), (6, 0.75)):
    values = {'mean_2k': value}
    better = best.is_better(values)
    assert better == (step < 6)
    if better:
      best.save(state.replace(step=np.int32(step)), {}, values)
  assert not best.is_better({'loss': 0.0})
  best.close()
  kept = Checkpoints(tmp_path / 'best')
  assert kept.steps() == [4]
  assert kept.identity()['best'] == {'metric': 'mean_2k', 'value': 0.25}
  assert not (tmp_path / 'best' / '4' / 'opt_state').exists()
  assert not Best(epath.Path(tmp_path), 'mean', resumes=True).is_better({'mean': 0.3})
  Best(epath.Path(tmp_path), 'mean', resumes=False)
  assert not (tmp_path / 'best').exists()


def test_other_writers_see_what_is_written_and_cannot_stop_a_run(run, tmp_path):
  seen: list = []
  other = Destination(
    'elsewhere',
    start=lambda folder, config: seen.append((folder, config['name'])),
    scalars=lambda step, values: seen.append((step, sorted(values))),
    image=lambda step, name, picture: seen.append((step, name, picture.shape[-1])),
    close=lambda: seen.append('closed'),
  )
  broken = Destination('broken', scalars=lambda step, values: 1 / 0)
  with Writer(tmp_path, others=[other, broken], stream=io.StringIO()) as writer:
    writer.config({'name': 'tiny'})
    writer.scalars(1, {'loss': 2.0})
    writer.images(1, 'samples', np.zeros((4, 4, 4, 3), np.uint8))
    writer.flush()
    assert writer.failures == 1
  assert seen == [(str(tmp_path), 'tiny'), (1, ['loss']), (1, 'samples', 3), 'closed']


def test_weights_and_biases_are_told_the_same(monkeypatch):
  calls: list = []
  fake = types.ModuleType('wandb')
  run = types.SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append('end'))
  fake.init = lambda **options: calls.append(options) or run
  fake.Image = lambda picture: picture.shape
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  made = wandb('project', mode='offline')
  for _ in range(2):  # at each stage
    made.start('/tmp/runs/mine', {'config': {'steps': 2}})
  made.scalars(2, {'loss': 1.0})
  made.image(2, 'samples', np.zeros((2, 3, 3), np.uint8))
  made.close()
  options, *rest = calls
  assert options['name'] == 'mine'
  assert options['resume'] == 'allow'
  assert options['mode'] == 'offline'
  assert rest == [(2, {'loss': 1.0}), (2, {'samples': (2, 3, 3)}), 'end']
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ValueError, match='pip install'):
    wandb('project')
