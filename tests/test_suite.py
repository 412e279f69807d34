"""All metrics of one set of samples: their contract, published forms, one pass, and going on after a kill."""

import json
import os
import pathlib
import xml.etree.ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen import distributed, sweep
from jaxgen.cli import evaluate as command
from jaxgen.cli.main import main
from jaxgen.evaluators import quality
from jaxgen.metrics import suite
from jaxgen.metrics.clip_score import clip_score
from jaxgen.metrics.frechet_extrapolation import frechet_extrapolation
from jaxgen.metrics.maximum_mean_discrepancy import cmmd
from jaxgen.metrics.memorisation import memorisation
from jaxgen.metrics.precision_recall import density_coverage, precision_recall, two_nearest
from jaxgen.metrics.reference import read_all
from jaxgen.metrics.shards import Shards
from jaxgen.models import inception
from jaxgen.pretrained import inception as inception_weights

TINY = str(pathlib.Path(__file__).with_name('tiny_config.py'))


def features(seed, shift=0.0, num=1200):
  rng = np.random.default_rng(seed)
  made = {'pool': rng.normal(size=(num, 6)) + shift, 'spatial': rng.normal(size=(num, 4)) + shift}
  made['lpips'] = np.where(np.arange(num) % 2, np.nan, rng.uniform(0.1, 0.2, num))
  return {name: values.astype(np.float32) for name, values in made.items()}


def reference(made):
  return suite.Reference(made, {name: suite.moments_of(made[name]) for name in ('pool', 'spatial')})


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
  monkeypatch.setattr(suite, 'KID_SUBSETS', 3)


def logits(pool):
  return 3 * pool


# The number of each metric that is best, and what it is for a set against itself.
IDEAL = {
  'fid': ('fid_1200', 0.0, 0),
  'sfid': ('sfid_1200', 0.0, 0),
  'kid': ('kid', 0.0, 0.05),
  'mind': ('mind', 0.0, 0),
  'precision_recall': ('precision', 1.0, 0),
  'density_coverage': ('coverage', 1.0, 0),
  'memorisation': ('memorised_share', 1.0, 0),
}


@pytest.mark.parametrize('name', suite.METRICS)
def test_contract_of_a_metric(name):
  """Finite numbers with a protocol; one number for each; nothing and statistics alone are refused in one line."""
  own, other = features(0), features(1, shift=1.0)
  values, how = suite.measure([name], other, reference(own), logits=logits)
  assert all(np.isfinite(value) for value in values.values())
  assert how or name == 'fid'
  assert json.loads(json.dumps(values)) == values
  if name in IDEAL:
    key, ideal, tolerance = IDEAL[name]
    same = suite.measure([name], own, reference(own), logits=logits)[0][key]
    assert same == pytest.approx(ideal, abs=tolerance)
    if not tolerance:
      assert same == ideal
    assert abs(values[key] - ideal) > abs(same - ideal)
  few = {key: array[:1] for key, array in other.items()}
  with pytest.raises(ValueError) as error:
    suite.measure([name], few, suite.Reference({}, {}) if name == 'memorisation' else reference(own), logits=logits)
  assert '\n' not in str(error.value)


def test_the_command_knows_every_metric():
  assert tuple(suite.METRICS) == command._NAMES
  with pytest.raises(ValueError, match="no metric 'fdi'; wanted some of fid, sfid"):
    suite.check_names(['fdi'])


def test_a_lowered_subset_of_kid_is_said():
  _, how = suite.measure(['kid'], features(0, num=300), reference(features(1)))
  assert how['kid_subset_size'] == 300
  assert 'for want of 1000 images' in how['kid_note']
  values, how = suite.measure(['kid'], features(0, num=300), reference(features(1, num=300)))
  assert how['kid_subset_size'] == 150  # of 300 both, all subsets would be one, and its deviation a rounding error
  assert values['kid_deviation'] > 1e-9
  assert 'kid_note' not in suite.measure(['kid'], features(0), reference(features(1)))[1]


def test_neighbours_by_blocks_are_those_of_all_distances():
  rng = np.random.default_rng(0)
  real, fake = rng.normal(size=(1300, 5)).astype(np.float32), rng.normal(size=(1100, 5)).astype(np.float32) + 0.5
  distance = np.linalg.norm(real[:, None] - fake[None], axis=-1)
  within = np.linalg.norm(real[:, None] - real[None], axis=-1)
  radii = np.sort(within, axis=1)[:, 5]
  got = density_coverage(real, fake, neighbours=5)
  # As prdc.compute_prdc of Naeem et al. has it.
  assert got.density == pytest.approx((distance < radii[:, None]).sum(0).mean() / 5, rel=1e-9)
  assert got.coverage == pytest.approx((distance.min(1) < radii).mean(), rel=1e-9)
  number, least = two_nearest(fake, real)
  np.testing.assert_array_equal(number, distance.argmin(0))
  np.testing.assert_allclose(least, np.sort(distance, axis=0)[:2].T, rtol=1e-5)
  assert precision_recall(real, fake).precision == pytest.approx(
    (distance <= np.sort(within, axis=1)[:, 3, None]).any(0).mean()
  )


def test_copies_are_found():
  rng = np.random.default_rng(0)
  training = rng.normal(size=(500, 8))
  fresh, copies = rng.normal(size=(50, 8)), training[100:150] + 1e-3
  assert memorisation(training, fresh).share < 0.05
  found = memorisation(training, np.concatenate([fresh, copies]))
  assert found.share == pytest.approx(0.5, abs=0.03)
  np.testing.assert_array_equal(found.nearest[50:], np.arange(100, 150))


def test_fid_of_infinite_samples_is_without_the_bias():
  rng = np.random.default_rng(0)
  real = suite.moments_of(rng.normal(size=(100_000, 32)))
  generated = rng.normal(size=(4000, 32))
  values, _ = suite.measure(['fid'], {'pool': generated}, suite.Reference({}, {'pool': real}))
  found = frechet_extrapolation(generated, real)
  assert abs(found.value) < 0.15 * values['fid_4k']
  assert 0 < found.standard_error < 0.05
  with pytest.raises(ValueError, match='1000 samples or more, got 900'):
    frechet_extrapolation(generated[:900], real)


def test_cmmd_of_two_points_is_its_formula():
  a, b = np.array([[2.0, 0.0]]), np.array([[0.0, 0.5]])
  assert cmmd(a, b) == pytest.approx(1000 * (2 - 2 * np.exp(-2 / 200)), rel=1e-12)
  many = np.random.default_rng(0).normal(size=(50, 8))
  assert cmmd(many, many) == 0
  assert cmmd(many, many + 1) > 0


def test_clip_score_in_its_three_scales():
  images, texts = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [0.0, -1.0]])
  found = clip_score(images, texts)
  assert found.cosine == pytest.approx((0.5**0.5 - 1) / 2)
  assert found.hessel == pytest.approx(2.5 * 0.5**0.5 / 2)
  assert found.percent == pytest.approx(100 * 0.5**0.5 / 2)
  with pytest.raises(ValueError, match='one text for each'):
    clip_score(images[:1], texts[:1])


def test_statistics_of_adm_have_both_parts(tmp_path):
  both = {'mu': np.zeros(3), 'sigma': np.eye(3), 'mu_s': np.ones(2), 'sigma_s': np.eye(2)}
  np.savez(tmp_path / 'adm.npz', **both)
  found = read_all(tmp_path / 'adm.npz')
  assert {name: len(moments.mean) for name, moments in found.items()} == {'pool': 3, 'spatial': 2}
  np.savez(tmp_path / 'edm.npz', mu=both['mu'], sigma=both['sigma'])
  with pytest.raises(ValueError, match='no mu_s and sigma_s'):
    suite.measure(['sfid'], features(0), suite.Reference({}, read_all(tmp_path / 'edm.npz')))


def test_shards_go_on_and_never_mix(tmp_path):
  first = Shards(tmp_path, about={'step': 1})
  first.add({'pool': np.arange(4.0)})
  first.flush()
  first.add({'pool': np.arange(9.0)})  # a kill comes before it is written
  again = Shards(tmp_path, about={'step': 1})
  assert len(again) == 4
  again.add({'pool': np.arange(4.0, 6.0)})
  np.testing.assert_array_equal(again.arrays()['pool'], np.arange(6.0))
  (tmp_path / 'shard_000001.npz').write_bytes(b'cut in half')
  assert len(Shards(tmp_path, about={'step': 1})) == 4
  assert len(Shards(tmp_path, about={'step': 2})) == 0
  assert not list(tmp_path.glob('shard_*'))


def test_the_spatial_features_are_a_slice_of_the_sixth_block(monkeypatch):
  """Beside the pooled features, which are the same as without them."""
  outputs = (jnp.arange(2.0 * 2048).reshape(2, 2048), jnp.arange(2.0 * 17 * 17 * 7).reshape(2, 17, 17, 7))
  monkeypatch.setattr(inception, '_outputs', lambda params, x: outputs)
  both = np.asarray(inception.network_with_spatial({}, jnp.zeros((2, 299, 299, 3))))
  assert both.shape == (2, 2048 + 2023)
  np.testing.assert_array_equal(both[:, :2048], outputs[0])
  np.testing.assert_array_equal(both[1, 2048:], np.asarray(outputs[1])[1].reshape(-1))


# --- a run


def cheap(images):
  flat = np.asarray(images, np.float32).reshape(len(images), -1)
  return np.stack([flat.mean(1), flat.std(1), flat[:, 0], flat[:, 5]], axis=1)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(distributed, 'start', lambda *_: None)  # this process has begun already
    assert main(['train', '--config', TINY, '--workdir', str(workdir)]) == 0
    yield workdir


@pytest.fixture
def drawn(monkeypatch, tmp_path):
  """Cheap features; counts the images that reach the network."""
  counts = []

  def extractor(params, **options):
    def extract(images):
      counts.append(len(images))
      return cheap(images)

    return extract

  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  monkeypatch.setattr(
    inception_weights, 'load', lambda: inception_weights.Inception({'fc': {'kernel': np.eye(4)}}, 'cheap')
  )
  monkeypatch.setattr(inception, 'FEATURES', 4)
  monkeypatch.setattr(quality, 'feature_extractor', extractor)
  return counts


def pictures(folder, num):
  rng = np.random.default_rng(0)
  folder.mkdir()
  for i in range(num):
    Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(folder / f'{i}.png')
  return folder


def evaluate(run, tmp_path, capsys, *more):
  command_line = ['evaluate', '--run', str(run), '--config', TINY, '--out', str(tmp_path / 'out'), *more]
  assert main(command_line) == 0
  return json.loads(capsys.readouterr().out)


def test_one_pass_gives_every_metric_and_a_killed_one_goes_on(run, drawn, tmp_path, capsys, monkeypatch):
  names = 'fid,kid,precision_recall,density_coverage,memorisation,inception_score'
  real = pictures(tmp_path / 'real', 12)
  options = ['--metrics', names, '--num', '48', '--batch-size', '16', '--reference', str(real), '--save-samples', 'npz']
  monkeypatch.setattr(quality, '_SHARD', 16)
  whole = evaluate(run, tmp_path, capsys, *options)
  assert sum(drawn) == 48 + 12  # each image once, for all of them
  assert {'fid_48', 'kid', 'precision', 'recall', 'density', 'coverage', 'memorised_share'} <= whole.keys()
  assert whole['protocol']['step'] == 4
  assert whole['protocol']['reference'] == str(real)
  with np.load(tmp_path / 'out' / 'samples' / 'samples.npz') as file:
    images = file['arr_0']
    assert (images.shape, images.dtype) == ((48, 4, 4, 3), np.uint8)
  # As if killed after the first shard: only the rest is drawn, and the numbers are the same to the last digit.
  folder = tmp_path / 'out' / 'samples' / 'features'
  for path in sorted(folder.glob('shard_*'))[1:]:
    path.unlink()
  drawn.clear()
  again = evaluate(run, tmp_path, capsys, *options[:-2])
  assert sum(drawn) == 32 + 12
  assert again == whole
  drawn.clear()
  evaluate(run, tmp_path, capsys, *options[:-2], '--seed', '1')
  assert sum(drawn) == 48 + 12


def test_a_sweep_is_a_table_a_plot_and_a_section_of_the_report(run, drawn, tmp_path, capsys):
  options = ['--metrics', 'fid,inception_score', '--num', '16', '--sweep', 'seed=0,1', '--sweep', 'ema=none,net']
  found = evaluate(run, tmp_path, capsys, *options)
  settings = [point['settings'] for point in found['points']]
  assert settings == [{'seed': s, 'ema': e} for s in '01' for e in ('none', 'net')]
  drawn.clear()
  assert evaluate(run, tmp_path, capsys, *options)['points'] == found['points']
  assert sum(drawn) == 0
  points = sweep.read(tmp_path / 'out' / 'sweep.json')
  assert points == found['points']
  assert sweep.table(points).splitlines()[0].split() == ['seed', 'ema', 'fid_16', 'inception_score']
  xml.etree.ElementTree.fromstring(sweep.svg(points))
  assert 'Sweep' in sweep.section(points)


def test_a_sweep_of_own_evaluators_measures_those_alone(run, drawn, tmp_path, capsys):
  points = evaluate(run, tmp_path, capsys, '--only', 'mean', '--sweep', 'target=0.0,1.0')['points']
  assert [point['settings'] for point in points] == [{'target': '0.0'}, {'target': '1.0'}]
  assert [set(point['values']) for point in points] == [set(points[0]['values'])] * 2
  assert points[0]['values'] != points[1]['values'] and sum(drawn) == 0
  with pytest.raises(SystemExit):
    evaluate(run, tmp_path, capsys, '--only', 'mean', '--metrics', 'fid')
  assert 'give one of the two' in capsys.readouterr().err


@pytest.mark.parametrize('text', ['scale', 'scale=', '=1', 'scale=1,,2'])
def test_a_sweep_that_cannot_be_read_is_refused(text):
  with pytest.raises(ValueError, match='wanted FIELD=VALUE,VALUE'):
    sweep.settings_of([text])


def test_a_folder_against_itself_is_exactly_zero(drawn, tmp_path, capsys):
  pictures(tmp_path / 'a', 12)
  arguments = ['evaluate', '--images', str(tmp_path / 'a'), '--reference', str(tmp_path / 'a'), '--metrics', 'fid,kid']
  assert main(arguments) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['fid_12'] == 0.0
  assert found['protocol']['kid_subset_size'] == 6  # half, so that the subsets differ


def test_memory_of_neighbours_is_that_of_a_block():
  """50,000 x 50,000 distances are 20 GB; a block is 67 MB. Measured at a tenth, where all would be 200 MB."""
  import tracemalloc

  rng = np.random.default_rng(0)
  real, fake = rng.normal(size=(2, 5000, 16)).astype(np.float32)
  tracemalloc.start()
  precision_recall(real, fake)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 160e6, os.fspath(peak)
