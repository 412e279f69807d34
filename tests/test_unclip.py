"""DALL-E 2's and Imagen's networks against diffusers', their folders, and what a token of the prior may see."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.pretrained import folder, networks

CHECKED = (
  'act_fn',
  'layers_per_block',
  'only_cross_attention',
  'encoder_hid_dim',
  'addition_embed_type',
  'time_embedding_dim',
  'resnet_skip_time_act',
  'resnet_out_scale_factor',
  'addition_embed_type_num_heads',
  'class_embed_type',
  'cross_attention_norm',
  'attention_head_dim',
  'down_block_types',
  'mid_block_type',
)
GOLDEN = pathlib.Path(__file__).parent / 'golden'


def _opened(kind, path):
  """The network of a folder that diffusers would have written, and its answers."""
  with np.load(GOLDEN / f'diffusers_{kind}.npz') as file:
    arrays = {name: file[name] if name == 'config' or name[:3] == 'sd/' else jnp.asarray(file[name]) for name in file}
  tensors = {name[3:]: np.float32(array) for name, array in arrays.items() if name.startswith('sd/')}
  folder.write(path, json.loads(str(arrays['config'])), tensors)
  return networks.load(path), arrays, tensors


def _comes_back(it, tensors, path):
  networks.save(it, path)
  again, written = folder.tensors(path), json.loads((path / 'config.json').read_text())
  assert {name: written[name] for name in it.meta.config if name in CHECKED} == {
    name: value for name, value in it.meta.config.items() if name in CHECKED
  }
  assert again.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(np.asarray(again[name]), tensor, err_msg=name)
  assert networks.load(path).net == it.net


@pytest.fixture(scope='module')
def prior(tmp_path_factory):
  return _opened('prior', tmp_path_factory.mktemp('prior'))


def _prior_cond(arrays):
  return {'pooled': arrays['pooled'], 'text': arrays['text'], 'text_mask': arrays['mask']}


def test_prior_is_that_of_diffusers(prior, tmp_path):
  it, arrays, tensors = prior
  out = it.net.apply({'params': it.params}, arrays['x'][:, None], arrays['t'], _prior_cond(arrays))
  np.testing.assert_allclose(out[:, 0], arrays['out'], atol=1e-5)
  _comes_back(it, tensors, tmp_path)


def test_prior_sees_no_padding_and_every_token(prior):
  it, arrays, _ = prior

  def energy(text):
    cond = _prior_cond(arrays) | {'text': text}
    return jnp.sum(it.net.apply({'params': it.params}, arrays['x'][:, None], arrays['t'], cond) ** 2)

  seen = np.abs(jax.grad(energy)(jnp.asarray(arrays['text']))).sum(-1) > 0
  np.testing.assert_array_equal(seen, arrays['mask'])


def test_projection_is_that_of_diffusers(tmp_path):
  it, arrays, tensors = _opened('unclip_projection', tmp_path / 'in')
  out = it.net.apply({'params': it.params}, arrays['x'], arrays['pooled'], arrays['text'])
  np.testing.assert_allclose(out['text'], arrays['tokens'], atol=1e-5)
  np.testing.assert_allclose(out['vector'], arrays['vector'], atol=1e-5)
  _comes_back(it, tensors, tmp_path / 'out')


@pytest.mark.parametrize(
  ('kind', 'given'), [('unet_unclip', 'vector'), ('unet_level', 'level'), ('unet_imagen', 'level')]
)
def test_unet_that_reads_text_in_its_own_softmax_is_that_of_diffusers(kind, given, tmp_path):
  it, arrays, tensors = _opened(kind, tmp_path / 'in')
  cond = {'text': arrays['text'], 'text_mask': arrays['mask'], given: arrays['given']}
  x = arrays['x'].transpose(0, 2, 3, 1)
  if given == 'level':  # half of its channels are the enlarged image
    x, cond['concat'] = x[..., :3], x[..., 3:]
  out = jax.jit(it.net.apply)({'params': it.params}, x, arrays['t'], cond)
  np.testing.assert_allclose(out.transpose(0, 3, 1, 2), arrays['out'], atol=1e-4)
  _comes_back(it, tensors, tmp_path / 'out')
