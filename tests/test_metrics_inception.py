"""The Inception network against the features of a public implementation, and features of many images.

The weights are fetched where they are not yet, by the route that works (`jaxgen weights get inception`).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen import sharding
from jaxgen.bench.features import features_benchmark
from jaxgen.cli import evaluate as command
from jaxgen.evaluators.features import feature_extractor, named_features
from jaxgen.metrics import folder
from jaxgen.metrics.evaluate import evaluate
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.inception_score import inception_score
from jaxgen.metrics.kernel_distance import kernel_distance
from jaxgen.metrics.precision_recall import precision_recall
from jaxgen.metrics.statistics import FeatureStatistics
from jaxgen.models import inception
from jaxgen.models.layers.convolution import compiler_options
from jaxgen.pretrained import inception as inception_weights
from jaxgen.pretrained import weights

GOLDEN = Path(__file__).parent / 'golden' / 'inception.npz'


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


@pytest.fixture(scope='module')
def network():
  weights.get('inception')
  return inception_weights.load()


def to_float(pixels):
  return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def assert_features_agree(got, wanted):
  assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-4
  np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', ['emoji32', 'photo256'])
def test_tf1_resize_agrees(golden, name):
  resized = inception.tf1_bilinear(jnp.asarray(golden[f'{name}_uint8_nhwc'], jnp.float32))
  wanted = golden[f'{name}_resized_corner_nchw'].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(resized[:, :40, :40], wanted, atol=1e-3)


def test_bicubic_resize_is_pillows(golden):
  for name in ('emoji32', 'photo256'):
    pixels = golden[f'{name}_uint8_nhwc'][0]
    channels = [Image.fromarray(pixels[..., i].astype(np.float32)) for i in range(3)]
    wanted = [np.asarray(channel.resize((299, 299), Image.Resampling.BICUBIC)) for channel in channels]
    got = inception.pil_bicubic(jnp.asarray(pixels[None], jnp.float32))[0]
    np.testing.assert_allclose(got, np.clip(np.stack(wanted, -1), 0, 255), atol=1e-2)


def test_features_of_images_agree_sharded_over_eight_devices(golden, network):
  mesh = sharding.make_mesh(data=2, fsdp=4)
  extract = feature_extractor(
    network.params,
    batch_size=8,
    batch_sharding=sharding.batch_sharding(mesh),
    replicated=sharding.replicated(mesh),
  )
  for name in ('emoji32', 'photo256'):
    assert_features_agree(extract(to_float(golden[f'{name}_uint8_nhwc'])), golden[f'{name}_features'])


def test_features_of_a_prepared_input_agree(golden, network):
  ramp = (np.arange(3 * 299 * 299, dtype=np.float32) / (3 * 299 * 299) * 2 - 1).reshape(3, 299, 299)
  x = np.stack([np.zeros((299, 299, 3), np.float32), ramp.transpose(1, 2, 0)])
  compute = jax.jit(inception.network, compiler_options=compiler_options())
  wanted = np.concatenate([golden['zeros_features'], golden['ramp_features']])
  assert_features_agree(np.asarray(compute(network.params, x)), wanted)


def test_the_stored_weights_are_the_known_ones(network):
  assert network.hash == weights.REGISTRY['inception'].expected
  count = sum(p['kernel'].size + p['bias'].size for name, p in network.params.items() if name != 'fc')
  assert count == 21_785_568 - 17_216  # the published network's convolutions


def test_images_are_quantised_like_files():
  x = jnp.linspace(-1.2, 1.2, 299 * 299 * 3).reshape(1, 299, 299, 3)
  got = np.asarray(inception.prepare(x, resize=lambda pixels: pixels))
  pixels = 128 * got + 128
  np.testing.assert_array_equal(pixels, np.round(pixels))
  assert pixels.min() == 0
  assert pixels.max() == 255
  np.testing.assert_array_equal(inception.prepare(jnp.asarray(to_float(pixels)), resize=lambda p: p), got)


def test_missing_and_damaged_weights_say_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path))
  with pytest.raises(FileNotFoundError, match='jaxgen weights get inception'):
    inception_weights.load()
  path = inception_weights.default_path()
  assert path == weights.stored('inception')
  path.parent.mkdir()
  path.write_bytes(b'not weights')
  with pytest.raises(ValueError, match='damaged'):
    inception_weights.load()
  from safetensors.numpy import save_file

  save_file({'a': np.ones(3, np.float32)}, path, metadata={'hash': 'of something else'})
  with pytest.raises(ValueError, match='wrong hash'):
    inception_weights.load()


def test_logits_need_the_file_that_has_them():
  with pytest.raises(ValueError, match='no logits'):
    inception.inception_logits({}, jnp.ones((1, 2048)))
  tensors = {'fc.weight': np.arange(12, dtype=np.float32).reshape(3, 4)}
  got = inception.inception_logits(inception_weights.fold(tensors), jnp.eye(4)[1:2])
  np.testing.assert_array_equal(got, [[1, 5, 9]])


def test_batch_normalisation_is_folded():
  rng = np.random.default_rng(0)
  kernel, bias, mean = rng.normal(size=(5, 3, 1, 1)), rng.normal(size=5), rng.normal(size=5)
  variance = rng.uniform(size=5)
  names = {'conv.weight': kernel, 'bn.bias': bias, 'bn.running_mean': mean, 'bn.running_var': variance}
  folded = inception_weights.fold({f'x.{name}': np.float32(value) for name, value in names.items()})['x']
  inputs = rng.normal(size=3)
  wanted = (kernel[:, :, 0, 0] @ inputs - mean) / np.sqrt(variance + 1e-3) + bias
  np.testing.assert_allclose(inputs @ folded['kernel'][0, 0] + folded['bias'], wanted, rtol=1e-5)


@pytest.fixture
def small_network(monkeypatch):
  """A quick stand-in for the network, for what surrounds it: channel means and products of a few pixels."""

  def network(params, x):
    pixels = x[:, ::40, ::40].reshape(len(x), -1)
    return jnp.concatenate([x.mean((1, 2)), jnp.sin(pixels @ params['w'])], -1)

  monkeypatch.setattr(inception, 'network', network)
  return {'w': np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)}


@pytest.fixture(scope='module')
def images():
  return to_float(np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3)).astype(np.uint8))


def test_features_do_not_depend_on_batches_padding_or_devices(small_network, images):
  wanted = feature_extractor(small_network, batch_size=21)(images)
  assert wanted.shape == (21, 8)
  assert len(np.unique(wanted, axis=0)) == 21
  np.testing.assert_allclose(inception.inception_features(small_network, jnp.asarray(images)), wanted, atol=1e-5)
  mesh = sharding.make_mesh(data=4, tensor=2)
  sharded = feature_extractor(
    small_network,
    batch_size=8,
    batch_sharding=sharding.batch_sharding(mesh),
    replicated=sharding.replicated(mesh),
  )
  for extract in (feature_extractor(small_network, batch_size=4), sharded):
    np.testing.assert_allclose(extract(images), wanted, atol=1e-5)
    np.testing.assert_allclose(extract(images[:1]), wanted[:1], atol=1e-5)
  placed = jax.device_put(images[:8], sharding.batch_sharding(mesh))
  np.testing.assert_allclose(sharded(placed), wanted[:8], atol=1e-5)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Two folders of images of several sizes and kinds."""
  rng = np.random.default_rng(0)
  root = tmp_path_factory.mktemp('folders')
  for name, count in (('a', 25), ('b', 30)):
    (root / name / 'deep').mkdir(parents=True)
    for i in range(count):
      size = (12, 12) if i % 3 else (20, 9 + i)
      pixels = rng.integers(0, 200 if name == 'a' else 256, (*size, 3)).astype(np.uint8)
      path = root / name / ('deep' if i % 2 else '.') / f'{i:02}.{("png", "webp")[i % 5 == 0]}'
      Image.fromarray(pixels).save(path, lossless=True)
  (root / 'a' / 'notes.txt').write_text('not an image')
  return root


def test_every_image_of_a_folder_comes_once_in_batches_of_one_size(folders):
  images = folder.open_images(folders / 'a')
  files = [folders / 'a' / name for name in images.names]
  assert len(files) == 25
  assert images.skipped == '; skipped 1 file (.txt: 1)'
  batches = list(folder.image_batches(images, batch_size=4))
  assert [len(batch) for batch in batches if batch.shape[1:3] == (12, 12)] == [4, 4, 4, 4]
  got = sorted(image.tobytes() for batch in batches for image in batch)
  wanted = sorted(to_float(np.asarray(Image.open(path).convert('RGB'))).tobytes() for path in files)
  assert got == wanted


def test_transparency_is_laid_on_white_and_gray_becomes_rgb(tmp_path):
  Image.new('RGBA', (2, 2), (10, 20, 30, 0)).save(tmp_path / 'a.png')
  Image.new('L', (2, 2), 51).save(tmp_path / 'b.png')
  (batch,) = folder.image_batches(folder.open_images(tmp_path), batch_size=2)
  np.testing.assert_allclose(batch[:, 0, 0], [[1, 1, 1], [-0.6, -0.6, -0.6]], atol=1e-6)


def test_bad_folders(tmp_path):
  with pytest.raises(FileNotFoundError, match='there is no folder'):
    folder.open_images(tmp_path / 'missing')
  with pytest.raises(FileNotFoundError, match='no images'):
    folder.open_images(tmp_path)
  (tmp_path / 'bad.png').write_bytes(b'no')
  with pytest.raises(ValueError, match=r'bad\.png'):
    list(folder.image_batches(folder.open_images(tmp_path), batch_size=2))


def test_evaluate_compares_two_folders(folders, small_network, tmp_path):
  extract = feature_extractor(small_network, batch_size=4)
  logits = lambda features: 3 * features  # noqa: E731
  names = ['fid', 'kid', 'precision_recall', 'inception_score']
  options = {'extract': named_features(extract, None, {'pool'}), 'batch_size': 4}
  result = evaluate(folders / 'a', folders / 'b', metrics=names, logits=logits, **options)
  parts, wanted = [], []
  for name in 'ab':  # in the order of the names, which the batches, of one size each, do not have
    found = list(folder.numbered_batches(folder.open_images(folders / name), batch_size=4))
    order = np.argsort(np.concatenate([numbers for numbers, _ in found]))
    parts.append(np.concatenate([extract(batch) for _, batch in found])[order])
  for part in parts:
    statistics = FeatureStatistics()
    statistics.update(part)
    wanted.append(statistics.finalize())
  assert result.metrics['fid_25'] == pytest.approx(frechet_distance(*wanted), rel=1e-6)
  coverage = precision_recall(real=parts[1], generated=parts[0])
  assert coverage.precision != coverage.recall
  assert (result.metrics['precision'], result.metrics['recall']) == coverage
  assert result.metrics['kid'] == pytest.approx(kernel_distance(*parts, subset_size=25).mean, rel=1e-6)
  assert result.metrics['inception_score'] == pytest.approx(inception_score(3 * parts[0]).mean, rel=1e-6)
  assert (result.protocol['samples'], result.protocol['reference_samples']) == (25, 30)
  assert result.protocol['kid_subset_size'] == 25
  path = tmp_path / 'b.npz'
  np.savez(path, mu=wanted[1].mean, sigma=wanted[1].cov)
  from_file = evaluate(folders / 'a', path, metrics=['fid'], **options)
  assert from_file.metrics['fid_25'] == pytest.approx(result.metrics['fid_25'], rel=1e-6)
  for name in ('kid', 'memorisation'):
    with pytest.raises(ValueError, match=f'statistics only; {name} needs'):
      evaluate(folders / 'a', path, metrics=['fid', name], **options)


def test_the_command_prints_the_number_and_its_protocol(folders, small_network, monkeypatch, capsys):
  monkeypatch.setattr(inception_weights, 'load', lambda: inception_weights.Inception(small_network, 'abc'))
  assert command.main(['--images', str(folders / 'a'), '--reference', str(folders / 'b'), '--batch-size', '8']) == 0
  printed = json.loads(capsys.readouterr().out)
  assert printed['fid_25'] > 0
  assert printed['protocol'] | {'network_hash': 'abc', 'samples': 25} == printed['protocol']
  with pytest.raises(ValueError, match='no logits'):
    command.main(['--images', str(folders / 'a'), '--metrics', 'inception_score'])


def test_benchmark_counts_the_peer(small_network):
  turns = []
  result = features_benchmark(small_network, batch_size=2, repeats=3, peer=lambda: turns.append(1))
  assert len(turns) == 5
  assert result['images_per_second'] == pytest.approx(2000 / result['batch_ms'])
  assert result['ratio'] > 0
