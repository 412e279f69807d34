"""EDM's U-Nets against the public code's numbers; tests/torch_edm_unet.py tells how they were made."""

import math
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.cli import weights as command
from jaxgen.models.edm_unet import EDMUNet, ddpmpp, ncsnpp
from jaxgen.models.layers import resample
from jaxgen.models.unet import UNet
from jaxgen.pretrained import edm_unet as pretrained
from jaxgen.pretrained import layout, published
from jaxgen.pretrained.arrays import read
from jaxgen.processes.edm import edm
from jaxgen.processes.parameterisation import denoiser, preconditioned
from tests.torch_edm_unet import drawn

SIDE = 8  # of the file's images
NETWORKS = {
  'ddpmpp': EDMUNet(width=8, multipliers=(1, 2), blocks=1, num_classes=3, augment=2),
  'ncsnpp': EDMUNet(width=8, multipliers=(1, 2), blocks=1, num_classes=3, augment=2, smooth=True),
}
ADM = UNet(128, (1, 1), 1, attention=(1,), head_size=64, num_classes=3)  # as torch_edm_unet.ADM


@pytest.fixture(scope='module')
def golden():
  return read(pathlib.Path(__file__).parent / 'golden' / 'edm_unet.npz')


def _tensors(golden, name):
  """The state dict, with the filters that the file leaves out."""
  tensors = {key.partition('/')[2]: array for key, array in golden.items() if key.startswith(f'{name}/')}
  taps = np.float32([1, 3, 3, 1] if name == 'ncsnpp' else [1, 1])
  filters = ['enc.4x4_down.conv0', 'enc.4x4_down.skip', 'dec.8x8_up.conv0', 'dec.8x8_up.skip']
  filters += ['enc.4x4_aux_residual'] if name == 'ncsnpp' else []
  taps = np.outer(taps, taps)[None, None] / taps.sum() ** 2
  return tensors | {f'{place}.resample_filter': taps for place in filters}


def from_torch(net, tensors):
  return jax.tree.map(
    jnp.asarray, layout.pretrained(pretrained.original(net, resolution=SIDE), tensors, source='file').params
  )


def to_torch(net, params):
  return layout.tensors(pretrained.original(net, resolution=SIDE), params)


@pytest.mark.parametrize('name', NETWORKS)
def test_forward_agrees_with_the_public_network(golden, name):
  tensors = _tensors(golden, name)
  net = pretrained.with_frequencies(NETWORKS[name], tensors)
  params = from_torch(net, tensors)
  x, t = jnp.asarray(golden['x'].transpose(0, 2, 3, 1)), jnp.asarray(golden['t'])
  cond = {'label': jnp.asarray(golden['label'], jnp.int32), 'augment': jnp.asarray(golden['augment'])}
  got = jax.jit(net.apply)({'params': params}, x, t, cond)
  np.testing.assert_allclose(got.transpose(0, 3, 1, 2), golden[f'{name}_out'], atol=1e-4, rtol=0)


def test_adm_under_edm_s_preconditioning_agrees_with_the_public_network(golden):
  shapes = {name: tensor.shape for name, tensor in to_torch(ADM, _zeros(ADM)).items()}
  tensors = {name: drawn(name, shape) for name, shape in shapes.items() if 'filter' not in name}
  params = from_torch(ADM, tensors)
  process = edm()
  sigma = jnp.asarray(golden['adm_sigma'])
  low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
  t = (sigma ** (1 / 7) - low) / (high - low)
  denoise = denoiser(partial(ADM.apply, {'params': params}), process, partial(preconditioned, data_std=0.5))
  x, label = jnp.asarray(golden['adm_x'].transpose(0, 2, 3, 1)), jnp.asarray(golden['label'], jnp.int32)
  got = jax.jit(lambda x, t, label: denoise(x, t, {'label': label}).x0)(x, t, label)
  np.testing.assert_allclose(got.transpose(0, 3, 1, 2), golden['adm_out'], atol=1e-4, rtol=0)


def _zeros(net):
  cond = {'label': jnp.zeros(1, int)}
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), cond)['params']
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize('name', NETWORKS)
def test_weights_go_both_ways_bit_for_bit(golden, name):
  tensors = {key: array.astype(np.float32) for key, array in _tensors(golden, name).items()}
  net = pretrained.with_frequencies(NETWORKS[name], tensors)
  back = to_torch(net, from_torch(net, tensors))
  assert back.keys() == tensors.keys()
  for key, array in tensors.items():
    np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_a_state_dict_saved_as_arrays_becomes_a_folder_that_is_loaded(golden, tmp_path, monkeypatch):
  name, tensors = 'edm-tiny-ve', _tensors(golden, 'ncsnpp')
  monkeypatch.setitem(pretrained.PUBLISHED, name, pretrained.Published(NETWORKS['ncsnpp'], SIDE))
  np.savez(tmp_path / 'edm.npz', **{f'model.{key}': array for key, array in tensors.items()})
  assert command.main(['convert', str(tmp_path / 'edm.npz'), str(tmp_path / 'edm'), '--network', name]) == 0
  net, params, _ = published.load(tmp_path / 'edm')
  assert net.frequencies == tuple(tensors['map_noise.freqs'].astype(float))
  want = from_torch(net, tensors)
  jax.tree.map(np.testing.assert_array_equal, params, want)


def test_weights_of_another_network_are_refused_by_name(golden):
  tensors, net = _tensors(golden, 'ddpmpp'), NETWORKS['ddpmpp']
  other = dict(tensors, extra=np.zeros(3), **{'enc.8x8_conv.weight': np.zeros((8, 3, 5, 5))})
  del other['map_label.bias']
  with pytest.raises(ValueError) as error:
    from_torch(net, other)
  for line in ('missing: map_label.bias (8,)', 'unexpected: extra (3,)', 'misshapen: enc.8x8_conv.weight is (8, 3, 5'):
    assert line in str(error.value)
  with pytest.raises(ValueError, match='resample_filter is not the fixed one'):
    from_torch(net, dict(tensors, **{'enc.4x4_down.conv0.resample_filter': np.full((1, 1, 2, 2), 0.3)}))
  smooth = NETWORKS['ncsnpp'].clone(frequencies=(1.0,) * 8)
  with pytest.raises(ValueError, match='freqs is not the fixed one'):
    from_torch(smooth, _tensors(golden, 'ncsnpp'))
  with pytest.raises(ValueError, match=r"EDM published no 'edm-cifar'; wanted one of edm-cifar10-32x32-cond-vp, "):
    pretrained.published('edm-cifar')


@pytest.mark.parametrize('name', ['edm-imagenet-64x64-cond-adm', 'edm-ffhq-64x64-uncond-ve'])
def test_every_parameter_of_a_published_network_has_a_name(name):
  net, resolution = pretrained.PUBLISHED[name]
  leaves = pretrained._leaves(net, resolution, 3)
  names = [name for leaf in leaves.values() for name in leaf.names]
  assert len(set(names)) == len(names)
  found = {side for side in (64, 32, 16, 8) if f'enc.{side}x{side}_block0.qkv.weight' in names}
  assert found == ({32, 16, 8} if isinstance(net, UNet) else {16})


def test_adm_with_other_groups_than_edms_is_refused():
  """EDM's norms of 64 features have 16 groups, models/unet.py's 32: the images would be 32% off without a word."""
  with pytest.raises(ValueError, match="EDM's norm of 64 features has 16 groups, and this network 32"):
    pretrained.original(ADM.clone(width=64), resolution=SIDE)


def test_images_that_are_not_augmented_need_not_say_so():
  net, x = EDMUNet(width=8, multipliers=(1,), blocks=1, attention=(), augment=2), jnp.ones((1, 4, 4, 3))

  def both(key):
    params = jax.tree.map(lambda leaf: leaf + 0.1, net.init(key, x, jnp.zeros(1), {})['params'])
    return [net.apply({'params': params}, x, jnp.zeros(1), cond) for cond in ({}, {'augment': jnp.zeros((1, 2))})]

  without, with_zeros = jax.jit(both)(jax.random.key(0))
  np.testing.assert_allclose(without, with_zeros, rtol=1e-5)
  assert np.abs(with_zeros).max() > 0.1


@pytest.mark.parametrize(
  ('net', 'count'),
  [
    (ddpmpp(augment=9), 55_733_891),
    (ddpmpp(augment=9, num_classes=10), 55_735_299),
    (ncsnpp(augment=9), 56_397_827),
  ],
)
def test_published_parameter_counts(net, count):
  cond = {'label': jnp.zeros(1, int), 'augment': jnp.zeros((1, 9))}
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.zeros(1), cond)
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def test_smooth_resampling_is_a_convolution_with_the_taps():
  x = np.random.default_rng(0).standard_normal((1, 4, 6, 2)).astype(np.float32)
  taps = np.array([1, 3, 3, 1]) / 8
  wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  want = [
    [np.einsum('i,j,bijc->bc', taps, taps, wide[:, 2 * r : 2 * r + 4, 2 * c : 2 * c + 4]) for c in range(3)]
    for r in range(2)
  ]
  np.testing.assert_allclose(resample.halve_smooth(jnp.asarray(x))[0], np.array(want)[:, :, 0], atol=1e-6)
  # Doubling is the transpose of halving, times the four pixels that share one's light.
  y = np.random.default_rng(1).standard_normal((1, 2, 3, 2)).astype(np.float32)
  _, transpose = jax.vjp(resample.halve_smooth, jnp.asarray(x))
  np.testing.assert_allclose(resample.double_smooth(jnp.asarray(y)), 4 * transpose(jnp.asarray(y))[0], atol=1e-6)


def test_what_does_not_divide_is_refused():
  with pytest.raises(ValueError, match='images of 6x7 cannot be halved 1 times'):
    NETWORKS['ddpmpp'].init(jax.random.key(0), jnp.zeros((1, 6, 7, 3)), jnp.zeros(1), {})
