"""Z-Image's transformer against diffusers', and its folder."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.z_image import ZImage, z_image
from jaxgen.pretrained import folder, networks

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'diffusers_z_image.npz'


def test_transformer_is_that_of_diffusers(tmp_path):
  with np.load(GOLDEN) as file:
    arrays = dict(file)
  tensors = {name[3:]: np.float32(array) for name, array in arrays.items() if name.startswith('sd/')}
  folder.write(tmp_path / 'in', json.loads(str(arrays['config'])), tensors)
  it = networks.load(tmp_path / 'in')
  cond = {'text': jnp.asarray(arrays['text']), 'text_mask': jnp.asarray(arrays['mask'])}
  x = jnp.asarray(arrays['x'].transpose(0, 2, 3, 1))
  out = jax.jit(it.net.apply)({'params': it.params}, x, jnp.asarray(arrays['t']), cond)
  np.testing.assert_allclose(out.transpose(0, 3, 1, 2), arrays['out'], atol=1e-4)
  networks.save(it, tmp_path / 'out')
  assert networks.load(tmp_path / 'out').net == it.net
  again = folder.tensors(tmp_path / 'out')
  assert again.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(np.asarray(again[name]), tensor, err_msg=name)


def test_the_published_size_has_the_published_count():
  def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  cond = {'text': array(1, 32, 2560)}
  made = jax.eval_shape(lambda *args: z_image().init(jax.random.key(0), *args), array(1, 8, 8, 16), array(1), cond)
  assert sum(leaf.size for leaf in jax.tree.leaves(made)) == 6_154_908_736


def test_bad_sizes_are_refused_in_words():
  x, cond = jnp.zeros((1, 6, 6, 4)), {'text': jnp.zeros((1, 3, 4))}
  small = ZImage(depth=1, width=24, heads=2, rope=(4, 4, 4))
  with pytest.raises(ValueError, match='do not divide into patches of 4'):
    jax.eval_shape(small.clone(patch=4).init, jax.random.key(0), x, jnp.zeros(1), cond)
  with pytest.raises(ValueError, match=r'rotary axes of \(2, 2, 2\) do not add up to heads of 12'):
    jax.eval_shape(small.clone(rope=(2, 2, 2)).init, jax.random.key(0), x, jnp.zeros(1), cond)
