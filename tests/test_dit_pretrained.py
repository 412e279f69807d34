"""The original PyTorch DiT's weights and numbers."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.dit import DiT
from jaxgen.models.layers.embedding import timestep_embedding
from jaxgen.pretrained import dit as pretrained
from jaxgen.pretrained import layout

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'dit_tiny.npz'
IMAGE = (16, 16, 4)
NET = DiT(patch=2, depth=3, width=48, heads=4, num_classes=10, learn_sigma=True)
MADE = pretrained.original(NET, image_shape=IMAGE)


def from_torch(made, tensors):
  """The parameters of a layout's network from its state dict."""
  return layout.pretrained(made, tensors, source='file').params


@pytest.fixture(scope='module')
def golden() -> dict[str, np.ndarray]:
  with np.load(GOLDEN) as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def tensors(golden):
  return {name[3:]: array for name, array in golden.items() if name.startswith('sd/')}


@pytest.fixture(scope='module')
def params(tensors):
  return from_torch(MADE, tensors)


def _forward(params, x, t, y):
  x = jnp.asarray(x).transpose(0, 2, 3, 1)
  cond = {'label': jnp.asarray(y, jnp.int32)}
  out = jax.jit(NET.apply)({'params': params}, x, jnp.asarray(t, jnp.float32), cond)
  return np.asarray(out.transpose(0, 3, 1, 2))


def test_weights_of_the_golden_file_are_perturbed(params):
  zero = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(params) if not leaf.any()]
  assert not zero


def test_forward_agrees_with_the_original(golden, params):
  out = _forward(params, golden['x'], golden['t'], golden['y'])
  np.testing.assert_allclose(out, golden['out'], atol=1e-5, rtol=0)


def test_guidance_on_all_channels_agrees_with_the_original(golden, params):
  x, y, scale = golden['x'][:2], golden['y'][:2], float(golden['cfg_scale'])
  t = np.full(2, 500)  # the file guides both images at this time
  conditional = _forward(params, x, t, y)[:, :4]
  unconditional = _forward(params, x, t, np.full_like(y, NET.num_classes))[:, :4]
  guided = unconditional + scale * (conditional - unconditional)
  np.testing.assert_allclose(guided, golden['cfg_eps'], atol=1e-5, rtol=0)


def test_the_sinusoid_of_diffusers_ends_at_the_last_frequency():
  """diffusers' Timesteps(8, flip_sin_to_cos=True, downscale_freq_shift=1)."""
  t, frequencies = np.array([3.0, 700.0]), 10000.0 ** (-np.arange(4) / 3)
  want = np.concatenate([np.cos(t[:, None] * frequencies), np.sin(t[:, None] * frequencies)], 1)
  np.testing.assert_allclose(timestep_embedding(jnp.asarray(t), 8, frequency_shift=1), want, atol=1e-4)
  assert np.abs(timestep_embedding(jnp.asarray(t), 8) - want).max() > 0.1


def test_round_trip_is_bit_exact(tensors, params):
  back = layout.tensors(MADE, params)
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_every_problem_is_listed_at_once(tensors):
  broken = dict(tensors, extra=np.zeros(3), **{'final_layer.linear.bias': np.zeros(31)})
  del broken['blocks.1.attn.qkv.weight']
  with pytest.raises(ValueError) as error:
    from_torch(MADE, broken)
  message = str(error.value)
  assert 'missing: blocks.1.attn.qkv.weight (144, 48)' in message
  assert 'unexpected: extra (3,)' in message
  assert 'misshapen: final_layer.linear.bias is (31,), wanted (32,)' in message


def test_learned_positions_are_refused(tensors):
  with pytest.raises(ValueError, match='pos_embed is not the fixed one'):
    from_torch(MADE, tensors | {'pos_embed': tensors['pos_embed'] + 1})


@pytest.mark.parametrize('option', [{'rope': True}, {'swiglu': True}, {'registers': 4}])
def test_a_network_that_the_file_cannot_be_of_is_refused(option):
  with pytest.raises(ValueError, match=rf"the published DiT has none of \['{next(iter(option))}'\]"):
    pretrained.original(NET.clone(**option), image_shape=IMAGE)
