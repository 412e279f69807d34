"""U-Nets: published sizes, the original PyTorch code's weights and numbers, the ways to run a network."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_models import perturbed

from jaxgen.models import unet
from jaxgen.models.layers import embedding, remat, resample
from jaxgen.pretrained import layout
from jaxgen.pretrained import unet as pretrained
from jaxgen.pretrained.unet import QkvOrder

GOLDEN = pathlib.Path(__file__).parent / 'golden'
_tiny = functools.partial(unet.UNet, width=32, multipliers=(1, 2, 2), blocks=1)
_tinier = functools.partial(unet.UNet, width=16, multipliers=(1, 2), blocks=1, groups=8)
ORIGINALS = {  # the network, and what else its file's reader must know
  'adm_tiny': (
    _tiny(attention=(1, 2), head_size=16, num_classes=1000, learn_sigma=True),
    {'qkv_order': QkvOrder.NEW},
  ),
  'iddpm_tiny': (_tiny(attention=(1,), heads=2, style=unet.IDDPM._replace(scale_shift=False)), {}),
  'ddpm_tiny': (_tinier(attention=(1,), style=unet.DDPM), {}),
  'stable_tiny': (
    _tinier(attention=(0,), heads=2, transformer=1, style=unet.STABLE),
    {'channels': 4, 'text_width': 12},
  ),
}
COND = {'label': 'y', 'text': 'text'}  # key of the conditioning -> of the file
_small = functools.partial(
  unet.UNet, width=16, multipliers=(1, 2), blocks=0, attention=(1,), heads=2, num_classes=5, groups=4
)
_x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32))
_t = jnp.array([3.0, 700.0])
_cond = {'label': jnp.array([1, 5])}


def _params(net):
  """Random parameters of the tests' inputs, none of them zero, without compiling an initialisation."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), _x, _t, _cond)['params']
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
  return perturbed(zeros, scale=0.2)


@pytest.fixture(scope='module')
def params():
  return _params(_small())


def _key(seed):
  return jax.random.key(seed, impl='unsafe_rbg')  # compiles faster than the default


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=('train',))
def _apply(net, params, cond, *, train=False, **kwargs):
  return net.apply({'params': params}, _x, _t, cond, train=train, **kwargs)


def from_torch(made, tensors):
  """The parameters of a layout's network from its state dict."""
  return layout.pretrained(made, tensors, source='file').params


class Original:
  """The tensors, inputs and outputs of a file, and the parameters made of it."""

  def __init__(self, name):
    self.net, self.options = ORIGINALS[name]
    with np.load(GOLDEN / f'{name}.npz') as arrays:
      self.arrays = dict(arrays)
    self.tensors = {name[3:]: array for name, array in self.arrays.items() if name.startswith('sd/')}
    self.params = from_torch(pretrained.original(self.net, **self.options), self.tensors)


@pytest.fixture(params=ORIGINALS, scope='module')
def original(request) -> Original:
  return Original(request.param)


@pytest.mark.parametrize(
  ('net', 'count'),
  [
    (unet.ddpm('cifar10'), 35_746_307),
    (unet.ddpm('256'), 113_673_219),
    (unet.iddpm('cifar10'), 52_546_438),
    (unet.iddpm('imagenet64'), 121_063_942),
    (unet.adm(64), 295_904_454),
    (unet.adm(128), 421_529_606),
    (unet.adm(256), 553_838_086),
    (unet.adm(512), 558_997_638),
    (unet.stable_diffusion('1.5'), 859_520_964),
    (unet.stable_diffusion('2.1'), 865_910_724),
  ],
  ids=lambda value: f'{value:,}' if isinstance(value, int) else '',
)
def test_published_parameter_counts(net, count):
  side = 2 ** (len(net.multipliers) - 1)
  x, t = jnp.zeros((1, side, side, 4 if net.transformer else 3)), jnp.zeros(1)
  cond = {'label': jnp.zeros(1, int), 'text': jnp.zeros((1, 7, 1024 if net.head_size else 768))}
  shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, cond)
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
  ('constructor', 'name', 'message'),
  [
    (unet.ddpm, 'lsun', r"DDPM has no U-Net 'lsun'; wanted one of 'cifar10', '256'"),
    (unet.iddpm, '64', r"IDDPM has no U-Net '64'; wanted one of 'cifar10', 'imagenet64'"),
    (unet.adm, 32, 'ADM has no U-Net 32; wanted one of 64, 128, 256, 512'),
  ],
)
def test_unknown_name_is_answered_with_the_known_ones(constructor, name, message):
  with pytest.raises(ValueError, match=message):
    constructor(name)


def test_forward_agrees_with_the_original(original):
  x = jnp.asarray(original.arrays['x']).transpose(0, 2, 3, 1)
  t = jnp.asarray(original.arrays['t'], jnp.float32)
  cond = {name: jnp.asarray(original.arrays[key]) for name, key in COND.items() if key in original.arrays}
  out = jax.jit(original.net.apply)({'params': original.params}, x, t, cond)
  np.testing.assert_allclose(out.transpose(0, 3, 1, 2), original.arrays['out'], atol=1e-5, rtol=0)


def test_weights_of_the_golden_files_are_perturbed(original):
  leaves = jax.tree.leaves_with_path(original.params)
  assert not [jax.tree_util.keystr(path) for path, leaf in leaves if not leaf.any()]


@pytest.mark.parametrize('order', QkvOrder)
def test_round_trip_is_bit_exact(original, order):
  options = original.options | {'qkv_order': order}
  made = pretrained.original(original.net, **options)
  back = layout.tensors(made, from_torch(made, original.tensors))
  assert back.keys() == original.tensors.keys()
  for name, tensor in original.tensors.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_every_problem_is_listed_at_once():
  original = Original('iddpm_tiny')
  broken = dict(original.tensors, extra=np.zeros(3), **{'out.2.bias': np.zeros(6)})
  del broken['input_blocks.3.1.qkv.weight']
  with pytest.raises(ValueError) as error:
    from_torch(pretrained.original(original.net, **original.options), broken)
  message = str(error.value)
  assert 'missing: input_blocks.3.1.qkv.weight (192, 64, 1)' in message
  assert 'unexpected: extra (3,)' in message
  assert 'misshapen: out.2.bias is (6,), wanted (3,)' in message


def test_names_of_stable_diffusion():
  leaves = pretrained.original(unet.stable_diffusion('1.5'), channels=4, text_width=768).leaves.values()
  lines = {f'{name} {leaf.tensor_shape}' for leaf in leaves for name in leaf.names}
  assert len(lines) == 686  # tensors under model.diffusion_model. of v1-5-pruned-emaonly
  with pytest.raises(ValueError, match=r'which has 686 tensors: 686 missing: .*, .*, .*, .*, .* and 681 more'):
    from_torch(pretrained.original(unet.stable_diffusion('1.5'), channels=4, text_width=768), {})
  for wanted in (
    'input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight (320, 768)',
    'input_blocks.3.0.op.weight (320, 320, 3, 3)',
    'middle_block.1.transformer_blocks.0.ff.net.0.proj.weight (10240, 1280)',
    'output_blocks.5.2.conv.bias (1280,)',
    'output_blocks.11.1.proj_in.weight (320, 320, 1, 1)',
  ):
    assert wanted in lines


@pytest.mark.slow
def test_remat_gives_the_same_numbers_with_dropout_and_keeps_less():
  net = _small(multipliers=(1,), attention=(), dropout=0.5)
  params = _params(net)

  def loss(net, params):
    return jnp.sum(jnp.square(_apply(net, params, _cond, train=True, rngs={'dropout': _key(1)})))

  def values(policy):
    return jax.jit(jax.value_and_grad(functools.partial(loss, net.clone(remat=policy))))(params)

  def kept(policy):
    _, vjp = jax.eval_shape(lambda params: jax.vjp(functools.partial(loss, net.clone(remat=policy)), params), params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(vjp))

  (value, grads), (other_value, other_grads) = values(None), values(remat.policy('full'))
  np.testing.assert_allclose(value, other_value, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), grads, other_grads)
  assert kept(remat.policy('full')) < kept(remat.policy('dots')) < 0.4 * kept(None)


def test_dropout_is_for_training_and_follows_its_key(params):
  net = _small(dropout=0.5)
  keys = (_key(seed) for seed in (0, 0, 1))
  one, again, other = (np.asarray(_apply(net, params, _cond, train=True, rngs={'dropout': key})) for key in keys)
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 1e-3
  np.testing.assert_array_equal(_apply(net, params, _cond), _apply(_small(), params, _cond))


def test_null_label_is_no_label(params):
  unconditional = {name: leaf for name, leaf in params.items() if name != 'label_embed'}
  null = _apply(_small(), params, {'label': jnp.array([5, 5])})
  wanted = _apply(_small(num_classes=0), unconditional, {})
  np.testing.assert_allclose(null, wanted, rtol=1e-5, atol=1e-5)


def test_bfloat16_activations_are_close_to_float32(params):
  exact, half = _apply(_small(), params, _cond), _apply(_small(dtype=jnp.bfloat16), params, _cond)
  error = float(jnp.linalg.norm(half - exact) / jnp.linalg.norm(exact))
  assert 0 < error < 0.05


@pytest.mark.slow
def test_statistics_of_norms_are_float32_in_half_precision(params):
  net = _small(dtype=jnp.bfloat16)
  jaxpr = str(jax.make_jaxpr(lambda params: net.apply({'params': params}, _x, _t, _cond))(params))
  roots = [line for line in jaxpr.splitlines() if ' = rsqrt ' in line]
  assert roots
  assert all('f32' in line for line in roots)


def test_ddpm_halves_as_tensorflow_does():
  net = _small(style=unet.DDPM)
  params = _params(net)
  _, state = jax.jit(functools.partial(net.apply, capture_intermediates=True, mutable='intermediates'))(
    {'params': params}, _x, _t, _cond
  )
  made = state['intermediates']
  layer = params['encoder_0_resize']
  wanted = lax.conv_general_dilated(
    made['conv_in']['__call__'][0], layer['kernel'], (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  wanted += layer['bias'][None, None, None]
  np.testing.assert_allclose(made['encoder_0_resize']['__call__'][0], wanted, rtol=1e-5, atol=1e-5)


def test_ddpm_sinusoid_has_sines_first_and_ends_at_one_ten_thousandth():
  features = embedding.ddpm_timestep_embedding(jnp.array([0.0, 3.0]), 8)
  np.testing.assert_array_equal(features[0], [0, 0, 0, 0, 1, 1, 1, 1])
  angles = 3 * np.array([1, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4])
  np.testing.assert_allclose(features[1], np.concatenate([np.sin(angles), np.cos(angles)]), rtol=1e-5)


def test_resampling():
  x = _x[:, :4, :6]
  np.testing.assert_allclose(resample.halve(x)[:, 1, 2], x[:, 2:4, 4:6].mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
  doubled = resample.double(x)
  assert doubled.shape == (2, 8, 12, 3)
  for row, column in np.ndindex(2, 2):
    np.testing.assert_array_equal(doubled[:, row::2, column::2], x)


def test_a_patch_is_the_network_on_squares_of_pixels():
  plain, patched = _small(learn_sigma=False), _small(learn_sigma=False, patch=2)
  x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
  squares = x.reshape(2, 4, 2, 6, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 6, 12)
  params = patched.init(jax.random.key(1), x, _t, _cond)
  params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # the last layer starts at zero
  made, wanted = patched.apply(params, x, _t, _cond), plain.apply(params, squares, _t, _cond)
  assert made.shape == x.shape and np.abs(made).max() > 0
  for row, column in np.ndindex(2, 2):
    square = slice(3 * (2 * row + column), 3 * (2 * row + column) + 3)
    np.testing.assert_array_equal(made[:, row::2, column::2], wanted[..., square])


@pytest.mark.parametrize(
  ('fields', 'shape', 'message'),
  [
    ({'patch': 4}, (8, 12), 'the sides of the images must divide by 8'),
    ({}, (8, 7), 'images of 8x7 cannot be halved 1 times; the sides of the images must divide by 2'),
    ({'groups': 32}, (8, 8), 'level 0: 16 features do not divide into 32 groups'),
    ({'heads': 3}, (8, 8), '32 features are not 3 heads of size 10; change heads, head_size or the width'),
    ({'head_size': 64}, (8, 8), '32 features are not 0 heads of size 64'),
  ],
)
def test_what_does_not_divide_is_refused(fields, shape, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_small(**fields).init, jax.random.key(0), jnp.zeros((2, *shape, 3)), _t, _cond)
