"""EDM's U-Nets against the public code's numbers; tests/torch_edm_unet.py tells how they were made."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxgen.models.edm_unet import EDMUNet, ddpmpp, ncsnpp
from jaxgen.models.layers import resample

SIDE = 8  # of the file's images
NETWORKS = {
  'ddpmpp': EDMUNet(width=8, multipliers=(1, 2), blocks=1, num_classes=3, augment=2),
  'ncsnpp': EDMUNet(width=8, multipliers=(1, 2), blocks=1, num_classes=3, augment=2, smooth=True),
}
OUTER = {
  'conv_in': f'enc.{SIDE}x{SIDE}_conv',
  'norm_out': f'dec.{SIDE}x{SIDE}_aux_norm',
  'conv_out': f'dec.{SIDE}x{SIDE}_aux_conv',
  'label': 'map_label',
  'augment_embed': 'map_augment',
  'embed_in': 'map_layer0',
  'embed_out': 'map_layer1',
}


def _name(module):
  """The public code's name of a module."""
  if module in OUTER:
    return OUTER[module]
  stage, *rest = module.split('/')
  half, level, part = stage.split('_', 2)
  side = SIDE >> int(level)
  if part == 'down_residual':
    part, rest = 'aux_residual', []
  return '.'.join([half[:3], f'{side}x{side}_{part}', *rest])


def _leaf(tensors, path, shape):
  """A Flax parameter from the public code's tensors."""
  module, _, parameter = path.rpartition('/')
  tensor = tensors.pop(f'{_name(module)}.{"bias" if parameter == "bias" else "weight"}').astype(np.float32)
  if module.endswith('/qkv'):  # rows are features, then which of the three
    tensor = np.moveaxis(tensor.reshape(-1, 3, *tensor.shape[1:2]), 0, 1)  # 3 h c
    return (tensor.transpose(2, 0, 1) if parameter == 'kernel' else tensor).reshape(shape)
  if parameter != 'kernel':
    return tensor
  return tensor.transpose(2, 3, 1, 0) if len(shape) == 4 else tensor.reshape(tensor.shape[:2]).T.reshape(shape)


@pytest.mark.parametrize('name', NETWORKS)
def test_forward_agrees_with_the_public_network(name):
  net = NETWORKS[name]
  with np.load(pathlib.Path(__file__).parent / 'golden' / 'edm_unet.npz') as file:
    tensors = {key.partition('/')[2]: file[key] for key in file if key.startswith(f'{name}/')}
    x, t, want = (jnp.asarray(file[key]) for key in ('x', 't', f'{name}_out'))
    cond = {'label': jnp.asarray(file['label'], jnp.int32), 'augment': jnp.asarray(file['augment'])}
  if net.smooth:
    net = net.clone(frequencies=tuple(map(float, tensors.pop('map_noise.freqs'))))
  x = x.transpose(0, 2, 3, 1)
  shapes = traverse_util.flatten_dict(jax.eval_shape(net.init, jax.random.key(0), x, t, cond)['params'], sep='/')
  params = traverse_util.unflatten_dict({path: _leaf(tensors, path, leaf.shape) for path, leaf in shapes.items()}, '/')
  assert not tensors
  assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(
    lambda leaf: leaf.shape, traverse_util.unflatten_dict(shapes, '/')
  )
  got = jax.jit(net.apply)({'params': params}, x, t, cond)
  np.testing.assert_allclose(got.transpose(0, 3, 1, 2), want, atol=1e-4, rtol=0)


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
