"""All metrics of one set of samples: their contract, published forms, one pass, and going on after a kill."""

import json
import os
import pathlib
import shutil
import tarfile
import xml.etree.ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen import distributed, sweep
from jaxgen.cli import evaluate as command
from jaxgen.cli.main import main
from jaxgen.data.tokenizers.words import words
from jaxgen.evaluators import quality
from jaxgen.metrics import dialects, paired, suite
from jaxgen.metrics.clip_score import clip_score
from jaxgen.metrics.evaluate import features_of
from jaxgen.metrics.folder import open_images
from jaxgen.metrics.frechet_extrapolation import frechet_extrapolation
from jaxgen.metrics.maximum_mean_discrepancy import cmmd
from jaxgen.metrics.memorisation import memorisation
from jaxgen.metrics.precision_recall import density_coverage, precision_recall, two_nearest
from jaxgen.metrics.reference import read_all
from jaxgen.metrics.shards import Shards
from jaxgen.models import dinov2, inception
from jaxgen.models.clip import CLIP, CLIPText, CLIPVision
from jaxgen.pretrained import inception as inception_weights
from jaxgen.pretrained import networks, tokenizer_files
from jaxgen.pretrained.layout import Pretrained

TINY = str(pathlib.Path(__file__).with_name('tiny_config.py'))


def features(seed, shift=0.0, num=1200):
  rng = np.random.default_rng(seed)
  made = {'pool': rng.normal(size=(num, 6)) + shift, 'spatial': rng.normal(size=(num, 4)) + shift}
  made |= {'dinov2': made['pool'], 'clip': made['pool'] + 3, 'clip_image': made['pool'], 'clip_text': made['pool']}
  made['lpips'] = np.where(np.arange(num) % 2, np.nan, rng.uniform(0.1, 0.2, num))
  return {name: values.astype(np.float32) for name, values in made.items()}


def reference(made):
  return suite.Reference(made, {name: suite.moments_of(made[name]) for name in suite.FRECHET})


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
  'fd_dinov2': ('fd_dinov2_1200', 0.0, 0),
  'precision_recall_dinov2': ('recall_dinov2', 1.0, 0),
  'density_coverage_dinov2': ('coverage_dinov2', 1.0, 0),
  'cmmd': ('cmmd', 0.0, 0),
}


@pytest.mark.parametrize('name', suite.METRICS)
def test_contract_of_a_metric(name):
  """Finite numbers with a protocol; one number for each; nothing and statistics alone are refused in one line."""
  own, other = features(0), features(1, shift=1.0)
  values, how = suite.measure([name], other, reference(own), logits=logits)
  assert all(np.isfinite(value) for value in values.values())
  assert how or name in ('fid', 'fd_dinov2')
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


def test_dialects_of_one_set_of_samples():
  """As each program defines them, from features under its own names; of files, ADM's are torch-fidelity's."""
  own, other = features(0), features(1, shift=0.3)
  more = {'pool_truncated': other['pool'] + 0.1, 'spatial_truncated': other['spatial'], 'pool_clean': other['pool'] * 2}
  real = own | {'pool_truncated': own['pool'], 'spatial_truncated': own['spatial'], 'pool_clean': own['pool'] * 2}
  names = ['fid', 'sfid', 'kid', 'inception_score', 'precision_recall', 'memorisation']
  assert dialects.needs(names) == {'pool', 'pool_truncated', 'spatial_truncated', 'pool_clean'}
  found = dialects.measure(names, other | more, real, logits=logits)
  usual, _ = suite.measure(names, other, reference(own), logits=logits)
  assert found['torch-fidelity'] == {n: usual[n] for n in usual if 'memor' not in n and 'sfid' not in n}
  assert found['clean-fid']['fid_1200'] == pytest.approx(4 * usual['fid_1200'])
  assert found['adm']['sfid_1200'] == pytest.approx(usual['sfid_1200'])
  p = np.exp(logits(more['pool_truncated'].astype(np.float64)))
  p /= p.sum(1, keepdims=True)
  assert found['adm']['inception_score'] == pytest.approx(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()), rel=1e-6)
  assert dialects.table(found).splitlines()[1].split()[0] == 'torch-fidelity'
  with pytest.raises(ValueError, match='no program'):
    dialects.measure(['memorisation'], other, real, logits=None)


def test_truncated_pixels_of_files_are_themselves():
  levels = np.resize(np.arange(256, dtype=np.float32), (1, 299, 299, 3))
  x = levels / np.float32(127.5) - 1

  def pixels(images, to_bits):
    got = inception.prepare(jnp.asarray(images), resize=lambda pixels: pixels, to_bits=to_bits)
    return np.asarray(got) * 128 + 128

  for to_bits in (inception.rounded, inception.truncated):
    np.testing.assert_array_equal(pixels(x, to_bits), levels)
  between = x + np.float32(0.7 / 127.5)
  np.testing.assert_array_equal(pixels(between, inception.truncated), levels)
  np.testing.assert_array_equal(pixels(between, inception.rounded), np.minimum(levels + 1, 255))


def test_models_differ_by_pairs():
  """Twenty studies of equals find nothing in nearly all; a shifted model is found, and by how much."""
  rng, real = np.random.default_rng(0), reference(features(0, num=300))
  found = 0
  for _study in range(20):
    a, b = ({'pool': rng.normal(size=(200, 6))} for _ in range(2))
    both = paired.compare(['fid', 'density_coverage'], a, b, real)
    found += min(one.p_value for one in both.values()) < 0.05
  assert found <= 4  # of 20 at 5% each, five or more come in 0.3% of all times
  shared = rng.normal(size=(400, 6))
  one = paired.compare(['fid', 'kid'], {'pool': shared}, {'pool': shared + 0.5}, real)
  assert all(difference.p_value < 1e-3 and difference.low > 0 for difference in one.values())
  assert one['fid_40'].difference == pytest.approx(one['fid_40'].second - one['fid_40'].first)
  assert 'differ' in paired.table(one, ['a', 'b'])
  with pytest.raises(ValueError, match='as many of both'):
    paired.compare(['fid'], {'pool': shared}, {'pool': shared[:-1]}, real)


def test_a_tensorflow_graph_is_the_same_network(tmp_path):
  """Constants by the names of classify_image_graph_def.pb, some as one repeated value; read without TensorFlow."""
  from tensorboardX.proto.graph_pb2 import GraphDef

  graph, rng = GraphDef(), np.random.default_rng(0)

  def constant(name, values):
    node = graph.node.add(name=name, op='Const')
    tensor = node.attr['value'].tensor
    for size in values.shape:
      tensor.tensor_shape.dim.add(size=size)
    if values.size > 1 and np.all(values == values.flat[0]):
      tensor.float_val.append(values.flat[0])
    else:
      tensor.tensor_content = values.astype('<f4').tobytes()

  kernels = {}
  for path in inception_weights._CONVOLUTIONS:
    for old, new in {'_mixed_': '/mixed/', '_conv': '/conv', '.': '/'}.items():
      path = path.replace(old, new)
    kernels[path] = rng.normal(size=(1, 3, 2, 4)).astype(np.float32)
    constant(f'{path}/conv2d_params', kernels[path])
    for name in ('beta', 'gamma', 'moving_mean', 'moving_variance'):
      constant(f'{path}/batchnorm/{name}', np.full(4, 0.5) if name == 'moving_variance' else rng.normal(size=4))
  constant('softmax/weights', np.arange(6.0).reshape(3, 2))
  (tmp_path / 'classify_image_graph_def.pb').write_bytes(graph.SerializeToString())
  tensors = inception_weights.read(tmp_path / 'classify_image_graph_def.pb')
  wanted = kernels['mixed_9/tower/mixed/conv_1'].transpose(3, 2, 0, 1)
  np.testing.assert_array_equal(tensors['Mixed_7b.branch3x3_2b.conv.weight'], wanted)
  np.testing.assert_array_equal(tensors['Conv2d_1a_3x3.bn.running_var'], np.full(4, 0.5, np.float32))
  np.testing.assert_array_equal(tensors['fc.weight'], np.arange(6.0).reshape(3, 2).T)
  graph.node.remove(next(node for node in graph.node if node.name == 'mixed_2/conv/conv2d_params'))
  (tmp_path / 'other.pb').write_bytes(graph.SerializeToString())
  with pytest.raises(ValueError, match='it lacks mixed_2/conv/conv2d_params'):
    inception_weights.read(tmp_path / 'other.pb')


def test_images_of_tar_shards(tmp_path):
  pictures(tmp_path / 'a', 5)
  for shard, names in ((0, '012'), (1, '34')):
    with tarfile.open(tmp_path / f's-{shard}.tar', 'w') as archive:
      for name in names:
        archive.add(tmp_path / 'a' / f'{name}.png', f'./{name}.png')
  found, wanted = open_images(tmp_path / 's-{0..1}.tar'), open_images(tmp_path / 'a')
  assert [name.rpartition('/')[2] for name in found.names] == list(wanted.names)
  for mine, its in zip(found.names, wanted.names, strict=True):
    np.testing.assert_array_equal(found.decode(mine), wanted.decode(its))
  (tmp_path / 'bad.tar').write_bytes(b'x' * 600)
  with pytest.raises(ValueError, match=r'no whole \.tar'):
    open_images(tmp_path / 'bad.tar')


def test_features_lie_in_the_order_of_names_whatever_the_sizes(tmp_path):
  (tmp_path / 'a').mkdir()
  for i, size in enumerate((4, 8, 4, 8, 8, 4, 4)):
    Image.fromarray(np.full((size, size, 3), 30 * i, np.uint8)).save(tmp_path / 'a' / f'{i}.png')
  found = features_of(open_images(tmp_path / 'a'), lambda images: {'pool': images.mean((1, 2))}, 2)
  np.testing.assert_allclose(found['pool'][:, 0], np.arange(7) * 30 / 127.5 - 1, atol=1e-6)


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
  (tmp_path / 'about.json').write_text('{"step"')  # damaged
  assert len(Shards(tmp_path, about={'step': 2})) == 0


def test_shards_that_cannot_be_written_stay_in_memory_where_they_only_help(tmp_path):
  taken = tmp_path / 'taken'
  taken.write_text('a file')
  with pytest.raises(OSError):
    Shards(taken / 'features', about={})
  kept = Shards(tmp_path / 'features', about={}, required=False)
  for shards in (kept, Shards(taken / 'features', about={}, required=False)):
    shards.add({'pool': np.arange(4.0)})
    shards.flush()
    if shards is kept:
      shutil.rmtree(tmp_path / 'features')  # the disk goes away
    shards.add({'pool': np.arange(4.0, 6.0)})
    np.testing.assert_array_equal(shards.arrays()['pool'], np.arange(6.0))
    shards.remove()


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


def test_samples_are_kept_though_their_features_are_there_and_a_killed_call_goes_on(
  run, drawn, tmp_path, capsys, monkeypatch
):
  options = ['--metrics', 'fid,memorisation', '--num', '40', '--batch-size', '8']
  monkeypatch.setattr(quality, '_SHARD', 16)
  whole, folder = evaluate(run, tmp_path, capsys, *options), tmp_path / 'out' / 'samples'
  assert (folder / 'memorisation.png').exists() and not (folder / 'samples').exists()
  drawn.clear()
  kept = quality.keep_png

  def killed(place):
    write = kept(place)

    def keep(first, images):
      if first >= 24:
        raise KeyboardInterrupt
      write(first, images)

    return keep

  monkeypatch.setattr(quality, 'keep_png', killed)
  with pytest.raises(KeyboardInterrupt):
    command.main(
      ['--run', str(run), '--config', TINY, '--out', str(tmp_path / 'out'), *options, '--save-samples', 'png']
    )
  capsys.readouterr()
  monkeypatch.setattr(quality, 'keep_png', kept)
  assert evaluate(run, tmp_path, capsys, *options, '--save-samples', 'png') == whole
  assert sum(drawn) == 0  # no image went through the network again
  names = sorted(path.name for path in (folder / 'samples').iterdir())
  assert names == [f'{i:06d}.png' for i in range(40)]
  other = evaluate(run, tmp_path, capsys, *options, '--seed', '1', '--num', '24', '--save-samples', 'png')
  assert other != whole and len(list((folder / 'samples').iterdir())) == 24


def test_two_runs_are_compared_by_pairs(run, drawn, tmp_path, capsys):
  real = pictures(tmp_path / 'real', 30)
  options = ['--metrics', 'fid', '--num', '40', '--reference', str(real)]
  found = evaluate(run, tmp_path, capsys, *options, '--against', str(run))
  assert found['paired']['fid_4']['difference'] == 0 and found['paired']['fid_4']['p_value'] == 1
  assert len(drawn) and found['fid_40'] >= 0


def test_clip_score_needs_prompts_and_folders_their_networks(run, drawn, tmp_path, capsys):
  for options, text in (
    (['--metrics', 'clip_score'], '--prompts FILE'),
    (['--metrics', 'fd_dinov2'], 'jaxgen weights get dinov2-large'),
    (['--metrics', 'fd_dinov2', '--network', 'dino=x'], 'no feature network is called'),
    (['--metrics', 'fd_dinov2', '--network', 'dinov2'], 'wanted NAME=FOLDER'),
  ):
    where = ['--run', str(run), '--config', TINY, '--out', str(tmp_path / 'out'), '--num', '8']
    assert main(['evaluate', *where, *options]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count('\n') == 1


def test_folders_by_dinov2_and_clip(tmp_path, capsys, monkeypatch):
  """Through the networks of tiny folders in the published format, with captions beside the images."""
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  monkeypatch.setattr(tokenizer_files, 'clip_tokenizer', lambda: tokenizer)
  tokenizer = words(['a', 'photo', 'depicts', 'red', 'blue'], length=8)
  nets = {
    'dinov2': dinov2.DINOv2(16, 1, 2, 32, 14, 28),
    'cmmd': CLIP(CLIPText(8, 1, 2, 6, 16), CLIPVision(8, 4, 8, 1, 2, 6, 16)),
  }
  options = []
  for name, net in nets.items():
    given = (jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 8, 8, 3))) if name == 'cmmd' else (jnp.zeros((1, 28, 28, 3)),)
    params = jax.jit(net.init)(jax.random.key(0), *given)['params']
    networks.save(Pretrained(net, params), tmp_path / name)
    options += ['--network', f'{name}={tmp_path / name}']
  options += ['--network', f'clip_score={tmp_path / "cmmd"}']
  a, b = pictures(tmp_path / 'a', 9), pictures(tmp_path / 'b', 12)
  (a / 'metadata.jsonl').write_text(
    ''.join(f'{{"file_name": "{i}.png", "text": "{("red", "blue")[i % 2]}"}}\n' for i in range(9))
  )
  names = 'fd_dinov2,precision_recall_dinov2,density_coverage_dinov2,cmmd,clip_score'
  assert main(['evaluate', '--images', str(a), '--reference', str(b), '--metrics', names, *options]) == 0
  found = json.loads(capsys.readouterr().out)
  assert {'fd_dinov2_9', 'recall_dinov2', 'coverage_dinov2', 'cmmd', 'clip_score', 'clip_score_percent'} <= found.keys()
  assert found['clip_score'] == pytest.approx(found['clip_score_percent'] / 40)
  how = found['protocol']
  assert (
    how['clip_score_prefix'] == 'A photo depicts'
    and len(how['dinov2_hash']) == 64
    and 'bicubic' in how['cmmd_features']
  )
  assert found['precision_dinov2'] == 1.0  # the nine are among the twelve
  (a / 'metadata.jsonl').unlink()
  assert main(['evaluate', '--images', str(a), '--metrics', 'clip_score', *options]) == 2
  assert 'has no caption' in capsys.readouterr().err


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
