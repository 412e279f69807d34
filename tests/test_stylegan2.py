"""StyleGAN2: published sizes, the original code's weights and numbers, and what makes it StyleGAN2.

golden/stylegan2_tiny.npz and upfirdn2d.npz hold weights, inputs and outputs of the published PyTorch code (float32,
random weights, noise strengths of 0.3).
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import init_from
from jaxgen.models.layers import equalized, upfirdn
from jaxgen.models.layers.styles import constant_noise, no_noise, random_noise
from jaxgen.models.stylegan2 import (
  StyleGAN2Discriminator,
  minibatch_deviation,
  stylegan2_generator,
)
from jaxgen.pretrained import layout, safetensors_file
from jaxgen.pretrained import stylegan2 as pretrained
from jaxgen.pretrained.arrays import read

GOLDEN = pathlib.Path(__file__).parent / 'golden'
G = stylegan2_generator(32, width=32, base=512, max_features=32)
D = StyleGAN2Discriminator(base=512, max_features=32, group=2)
COND = {'label': jnp.zeros(4, jnp.int32)}


def _nhwc(array):
  return jnp.asarray(array).transpose(0, 2, 3, 1)


@pytest.fixture(scope='module')
def arrays():
  with np.load(GOLDEN / 'stylegan2_tiny.npz', allow_pickle=False) as file:
    return dict(file)


def from_torch(made, tensors):
  """The parameters of a layout's network from its state dict."""
  return layout.pretrained(made, tensors, source='file').params


@pytest.fixture(scope='module')
def generator():
  tensors = read(GOLDEN / 'stylegan2_tiny.npz', prefix='G/')
  return jax.tree.map(jnp.asarray, from_torch(pretrained.generator(G), tensors))


@pytest.fixture(scope='module')
def discriminator():
  tensors = read(GOLDEN / 'stylegan2_tiny.npz', prefix='D/')
  return jax.tree.map(jnp.asarray, from_torch(pretrained.discriminator(D, resolution=32), tensors))


@pytest.fixture(scope='module')
def draw(generator):
  """`(ws, strength of the constant noise) -> images`, compiled once."""

  @jax.jit
  def images(ws, strength):
    def noise(layer, constant, count):
      return strength * constant_noise(layer, constant, count)

    return G.apply(generator, ws, noise, method='images')

  return images


def _made(net, *args, **kwargs):
  """Random variables of a network, without compiling its initialisation."""
  shapes = jax.eval_shape(lambda key: net.init(key, *args, **kwargs), jax.random.key(0))
  draw = np.random.default_rng(5).standard_normal
  return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape, np.float32)), shapes)


def _count(shapes):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['params']))


@pytest.mark.parametrize(
  ('resolution', 'base', 'generator', 'discriminator'),
  [
    (32, 32768, 21_523_475, 21_507_073),
    (256, 32768, 30_034_338, 28_864_129),
    (1024, 32768, 30_370_060, 29_012_513),
    (256, 16384, 24_767_458, 24_001_089),
  ],
)
def test_published_parameter_counts(resolution, base, generator, discriminator):
  net = stylegan2_generator(resolution, base=base)
  keys = jax.random.split(jax.random.key(0), 1)
  shapes = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 512)), {}, keys=keys), jax.random.key(0))
  assert _count(shapes) == generator
  image = jnp.zeros((1, resolution, resolution, 3))
  judge = StyleGAN2Discriminator(base=base)
  assert _count(jax.eval_shape(lambda key: judge.init(key, image, {}), jax.random.key(0))) == discriminator


@pytest.mark.parametrize(
  ('name', 'filtered'),
  [
    ('up2', upfirdn.upsample),
    ('down2', upfirdn.downsample),
    ('filtered', lambda x: upfirdn.blur(x, pad=(2, 1))),
    ('general', lambda x: upfirdn.upfirdn2d(x, (1 / 8, 3 / 8, 3 / 8, 1 / 8), up=2, down=3, pad=(2, 1, 3, 0), gain=1.5)),
  ],
)
def test_filters_agree_with_the_original(name, filtered):
  with np.load(GOLDEN / 'upfirdn2d.npz') as file:
    x, expected = _nhwc(file['x']), _nhwc(file[name])
  np.testing.assert_allclose(filtered(x), expected, atol=1e-5)


@pytest.mark.parametrize(('up', 'down', 'pad'), [(1, 1, (2, 0)), (3, 1, (1, 4)), (2, 3, (-1, 3)), (1, 2, (-2, -1))])
def test_a_filter_of_any_shape_is_eq_1(up, down, pad):
  """Against the definition, with a filter that is not separable, turned neither way."""
  rng = np.random.default_rng(0)
  x, taps = rng.standard_normal((1, 6, 7, 2)).astype(np.float32), rng.standard_normal((3, 4))
  enlarged = np.zeros((1, 6 * up, 7 * up, 2))
  enlarged[:, ::up, ::up] = x
  crop = [slice(max(-side, 0), None) for side in pad]
  enlarged = np.pad(enlarged, ((0, 0), *[(max(pad[0], 0), max(pad[1], 0))] * 2, (0, 0)))
  enlarged = enlarged[:, crop[0], crop[0]]
  if pad[1] < 0:
    enlarged = enlarged[:, : pad[1], : pad[1]]
  rows, columns = enlarged.shape[1] - 2, enlarged.shape[2] - 3
  expected = np.zeros((1, rows, columns, 2))
  for i in range(3):
    for j in range(4):
      expected += taps[2 - i, 3 - j] * enlarged[:, i : i + rows, j : j + columns]
  found = upfirdn.upfirdn2d(jnp.asarray(x), taps, up=up, down=down, pad=pad * 2)
  np.testing.assert_allclose(found, expected[:, ::down, ::down], atol=1e-5)


def test_a_filter_wider_than_the_image_is_refused():
  with pytest.raises(ValueError, match='4 taps do not fit an axis of 2 pixels'):
    upfirdn.blur(jnp.zeros((1, 2, 2, 1)), pad=(0, 0))


def test_equalised_layers_scale_when_used():
  x = jax.random.normal(jax.random.key(0), (512, 64))
  layer = equalized.EqualizedDense(16, rate=0.01, bias=1.0)
  params = layer.init(jax.random.key(1), x)
  kernel, bias = params['params']['kernel'], params['params']['bias']
  assert abs(float(kernel.std()) - 100) < 10 and (bias == 100).all()
  np.testing.assert_allclose(layer.apply(params, x), x @ kernel * (0.01 / 8) + 1, rtol=1e-4, atol=1e-4)
  assert abs(float(equalized.leaky(x).std()) - 1) < 0.15  # of unit variance as its input


def test_mapping_and_truncation_agree_with_the_original(arrays, generator):
  z = jnp.asarray(arrays['z'])
  ws = G.apply(generator, z, {}, method='styles')
  np.testing.assert_allclose(ws, arrays['ws'], atol=1e-5)
  half = G.apply(generator, z, {}, truncation=0.5, method='styles')
  np.testing.assert_allclose(half, arrays['ws_truncated_half'], atol=1e-5)
  part = G.apply(generator, z, {}, truncation=0.5, cutoff=3, method='styles')
  np.testing.assert_array_equal(part[:, :3], half[:, :3])
  np.testing.assert_array_equal(part[:, 3:], ws[:, 3:])


def test_synthesis_agrees_with_the_original(arrays, draw):
  ws = jnp.asarray(arrays['ws'])
  mixed = jnp.concatenate([ws[:, :4], jnp.roll(ws, 1, axis=0)[:, 4:]], axis=1)
  for name, (styles, strength) in {
    'img_const_noise': (ws, 1.0),
    'img_no_noise': (ws, 0.0),
    'img_mixed_from_layer4': (mixed, 1.0),
  }.items():
    np.testing.assert_allclose(draw(styles, strength), _nhwc(arrays[name]), atol=1e-4, err_msg=name)


def test_discriminator_agrees_with_the_original(arrays, discriminator):
  logits = jax.jit(D.apply)(discriminator, _nhwc(arrays['img_const_noise']), {})
  np.testing.assert_allclose(logits, arrays['logits'][:, 0], atol=1e-4)


def test_weights_go_back_as_they_came(generator, discriminator, tmp_path):
  original = read(GOLDEN / 'stylegan2_tiny.npz', prefix='G/')
  back = layout.tensors(pretrained.generator(G), generator)
  assert back.keys() == original.keys()
  jax.tree.map(np.testing.assert_array_equal, back, original)
  judge = read(GOLDEN / 'stylegan2_tiny.npz', prefix='D/')
  back_judge = layout.tensors(pretrained.discriminator(D, resolution=32), discriminator)
  assert back_judge.keys() == judge.keys()
  jax.tree.map(np.testing.assert_array_equal, back_judge, judge)
  safetensors_file.write(tmp_path / 'g.safetensors', back, metadata={})
  jax.tree.map(np.testing.assert_array_equal, read(tmp_path / 'g.safetensors'), original)


def test_labels_have_weights_that_go_both_ways():
  g, d = stylegan2_generator(8, width=32, base=512, max_features=32, num_classes=3), D.clone(num_classes=3)
  keys = jax.random.split(jax.random.key(0), 1)
  cond = {'label': jnp.zeros(1, jnp.int32)}
  made = _made(g, jnp.zeros((1, 32)), cond, keys=keys)
  tensors = layout.tensors(pretrained.generator(g), made)
  assert tensors['mapping.embed.weight'].shape == (32, 3) and tensors['mapping.fc0.weight'].shape == (32, 64)
  jax.tree.map(np.testing.assert_array_equal, from_torch(pretrained.generator(g), tensors), made)
  judge = _made(d, jnp.zeros((1, 8, 8, 3)), cond)
  tensors = layout.tensors(pretrained.discriminator(d, resolution=8), judge)
  assert tensors['mapping.fc7.weight'].shape == (32, 32) and tensors['b4.out.weight'].shape == (32, 32)
  jax.tree.map(np.testing.assert_array_equal, from_torch(pretrained.discriminator(d, resolution=8), tensors), judge)


def test_z_may_be_narrower_than_w_and_the_mapping_of_any_rate():
  """The published formula by hand: unit mean square, then layers of g = rate / sqrt(fan_in)."""
  net = stylegan2_generator(8, width=32, latent=16, base=512, max_features=32, layers=2, mapping_rate=0.1)
  keys, z = jax.random.split(jax.random.key(0), 2), jax.random.normal(jax.random.key(1), (2, 16))
  made = _made(net, z, {}, keys=keys)
  tensors = layout.tensors(pretrained.generator(net), made)
  assert tensors['mapping.fc0.weight'].shape == (32, 16) and tensors['mapping.fc1.weight'].shape == (32, 32)
  jax.tree.map(np.testing.assert_array_equal, from_torch(pretrained.generator(net), tensors), made)
  x = np.asarray(z) / np.sqrt(np.mean(np.square(z), axis=1, keepdims=True) + 1e-8)
  for layer in range(2):
    weight, bias = tensors[f'mapping.fc{layer}.weight'], tensors[f'mapping.fc{layer}.bias']
    x = x @ weight.T * (0.1 / np.sqrt(weight.shape[1])) + 0.1 * bias
    x = np.sqrt(2) * np.where(x > 0, x, 0.2 * x)
  ws = net.apply(made, z, {}, method='styles')
  np.testing.assert_allclose(ws, np.repeat(x[:, None], net.num_styles, axis=1), rtol=1e-4, atol=1e-5)
  shape = jax.eval_shape(  # style mixing draws another z
    lambda v: net.apply(v, z, {}, keys=keys, train=True, mutable=['statistics'])[0], made
  )
  assert shape.shape == (2, 8, 8, 3)


def test_tensors_that_do_not_fit_are_listed(tmp_path):
  tensors = read(GOLDEN / 'stylegan2_tiny.npz', prefix='G/')
  wrong = tensors | {'mapping.fc0.bias': np.zeros(31, np.float32), 'more': np.zeros(2)}
  del wrong['synthesis.b4.const']
  with pytest.raises(
    ValueError, match=r'(?s)missing: synthesis.b4.const.*unexpected: more.*misshapen: mapping.fc0.bias'
  ):
    from_torch(pretrained.generator(G), wrong)
  filters = tensors | {'synthesis.b8.resample_filter': np.ones((4, 4), np.float32) / 16}
  with pytest.raises(ValueError, match=r'b8\.resample_filter is not the fixed one'):
    from_torch(pretrained.generator(G), filters)
  with pytest.raises(ValueError, match='convert it where its code is trusted'):
    read(tmp_path / 'ffhq.pkl')
  with pytest.raises(ValueError, match="starts with 'Q/'"):
    read(GOLDEN / 'stylegan2_tiny.npz', prefix='Q/')


@pytest.fixture(scope='module')
def labelled():
  """A small generator with labels, `(z, keys, label) -> images` compiled once, and its inputs."""
  net = stylegan2_generator(8, width=16, base=128, max_features=16, num_classes=3, layers=2, mixing=1.0)
  keys, z = jax.random.split(jax.random.key(0), 4), jnp.asarray(np.random.default_rng(3).standard_normal((4, 16)))
  made = _made(net, z, COND, keys=keys)

  @jax.jit
  def sample(z, keys, label):
    return net.apply(made, z, {'label': label}, keys=keys)

  return net, made, sample, (z, keys, COND['label'])


def test_an_image_depends_on_its_own_latent_key_and_label(labelled):
  _, _, sample, (z, keys, label) = labelled
  images = sample(z, keys, label)
  for other in (
    (z.at[1].add(1.0), keys, label),
    (z, jnp.concatenate([keys[:1], keys[2:3], keys[2:]]), label),
    (z, keys, label.at[1].set(2)),
  ):
    changed = np.abs(sample(*other) - images).max((1, 2, 3)) > 1e-4
    assert changed.tolist() == [False, True, False, False]


def test_training_moves_the_mean_of_w_and_mixes_styles(labelled):
  net, made, sample, (z, keys, label) = labelled

  @jax.jit
  def train(z, keys):
    return net.apply(made, z, {'label': label}, keys=keys, train=True, mutable=['statistics'])

  images, moved = train(z, keys)
  w = jax.jit(lambda z: net.apply(made, z, {'label': label}, method='styles'))(z)[:, 0]
  before = made['statistics']['w_mean']
  np.testing.assert_allclose(moved['statistics']['w_mean'], before + 0.005 * (w.mean(0) - before), atol=1e-5)
  assert (np.abs(images - sample(z, keys, label)).max((1, 2, 3)) > 1e-3).all()


def test_the_label_chooses_the_discriminators_question():
  net = StyleGAN2Discriminator(base=128, max_features=16, num_classes=3, layers=2)
  images = jnp.asarray(np.random.default_rng(4).standard_normal((4, 8, 8, 3), np.float32))
  made = _made(net, images, COND)
  judge = jax.jit(lambda label: net.apply(made, images, {'label': label}))
  changed = np.abs(judge(COND['label'].at[1].set(2)) - judge(COND['label'])) > 1e-5
  assert changed.tolist() == [False, True, False, False]


def test_noise_is_of_the_images_key_and_the_layer():
  keys = jax.random.split(jax.random.key(1), 2)
  noise, constant = random_noise(keys), jnp.ones((4, 4))
  assert noise(0, constant, 2).shape == (2, 4, 4, 1)
  np.testing.assert_array_equal(noise(3, constant, 2)[1:], random_noise(keys[1:])(3, constant, 1))
  assert np.abs(noise(3, constant, 2) - noise(4, constant, 2)).max() > 0.1
  assert (no_noise(0, constant, 2) == 0).all() and (constant_noise(0, constant, 2) == 1).all()


def test_minibatch_deviation_is_that_of_the_group():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, 2, 3), np.float32))
  y = jax.jit(minibatch_deviation, static_argnums=1)(x, 2)
  np.testing.assert_array_equal(y[..., :3], x)
  for i in range(4):
    members = np.stack([x[i % 2], x[i % 2 + 2]])
    np.testing.assert_allclose(y[i, ..., 3], members.std(0).mean(), rtol=1e-4)
  with pytest.raises(ValueError, match='batch of 4 does not divide into groups of 3'):
    minibatch_deviation(x, 3)


def test_sizes_that_are_no_power_of_two_are_refused():
  net, keys = stylegan2_generator(48, width=8), jax.random.split(jax.random.key(0), 1)
  with pytest.raises(ValueError, match='resolution is 48'):
    jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 8)), {}, keys=keys), jax.random.key(0))


def test_a_run_starts_from_the_original_s_state_dicts(arrays, generator, discriminator, tmp_path):
  params = {'generator': generator['params'], 'discriminator': discriminator['params']}
  zeros = jax.tree.map(jnp.zeros_like, params)
  got = init_from.initialised(zeros, init_from.InitFrom(GOLDEN / 'stylegan2_tiny.npz'))
  jax.tree.map(np.testing.assert_array_equal, got, params)
  alone = {f'G_ema.{name[2:]}': array for name, array in arrays.items() if name.startswith('G/')}
  safetensors_file.write(tmp_path / 'g.safetensors', alone, metadata={})
  got = init_from.initialised(zeros, init_from.InitFrom(tmp_path / 'g.safetensors', fresh=('discriminator',)))
  jax.tree.map(np.testing.assert_array_equal, got, params | {'discriminator': zeros['discriminator']})
  with pytest.raises(ValueError, match='there none'):
    init_from.initialised(zeros, init_from.InitFrom(tmp_path / 'g.safetensors'))
  wrong = alone | {'G_ema.synthesis.b8.resample_filter': np.ones((4, 4), np.float32)}
  safetensors_file.write(tmp_path / 'w.safetensors', wrong, metadata={})
  with pytest.raises(ValueError, match='is not the filter'):
    init_from.initialised(zeros, init_from.InitFrom(tmp_path / 'w.safetensors'))
