"""PixArt against diffusers' transformer, the published count, and what is conditioned on."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxgen.models.pixart import PixArt, pixart_alpha

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'pixart.npz'  # random weights of diffusers 0.42.1, in our layout
NET = PixArt(patch=2, depth=2, width=24, heads=2, learn_sigma=True, sizes=True, base=4, scale=2.0)


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as file:
    arrays = {key: jnp.asarray(file[key]) for key in file}
  params = {k.removeprefix('params/'): v for k, v in arrays.items() if k.startswith('params/')}
  cond = {key: arrays[key] for key in ('text', 'text_mask', 'size', 'aspect')}
  return traverse_util.unflatten_dict(params, sep='/'), arrays['x'], arrays['t'], cond, arrays['out']


def test_forward_is_that_of_diffusers(golden):
  params, x, t, cond, out = golden
  found = jax.jit(NET.apply)({'params': params}, x, t, cond)
  np.testing.assert_allclose(found, out, atol=5e-5 * np.abs(out).max())


def test_masked_text_is_not_seen_and_the_rest_is(golden):
  params, x, t, cond, _ = golden

  @jax.jit
  def gradient(text):
    return jax.grad(lambda text: jnp.sum(NET.apply({'params': params}, x, t, cond | {'text': text}) ** 2))(text)

  seen = np.abs(gradient(cond['text'])).sum(axis=-1) > 0
  np.testing.assert_array_equal(seen, cond['text_mask'])


def test_the_published_size_has_the_published_count():
  def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  cond, init = {'text': array(1, 7, 4096)}, pixart_alpha(512).init
  made = jax.eval_shape(lambda *args: init(jax.random.key(0), *args), array(1, 8, 8, 4), array(1), cond)
  assert sum(leaf.size for leaf in jax.tree.leaves(made)) == 610_856_096


def test_the_text_map_puts_the_pooled_text_where_a_patch_is():
  net = PixArt(patch=2, depth=1, width=16, heads=2, pooled=True, text_map=3)
  rng = np.random.default_rng(0)
  text = jnp.asarray(rng.standard_normal((2, 3, 8)), jnp.float32)
  pooled = jnp.asarray(rng.standard_normal((2, 8)), jnp.float32)
  x = jnp.zeros((2, 4, 4, 3))

  def read(params, pooled):
    return net.apply({'params': params}, x, jnp.full(2, 500.0), {'text': text, 'pooled': pooled})

  params = jax.jit(net.init)(jax.random.key(0), x, jnp.zeros(2), {'text': text, 'pooled': pooled})['params']
  assert params['text_map']['map']['kernel'].shape == (32, 4, 3)  # hidden, patches, channels
  params['final']['kernel'] = jnp.asarray(rng.standard_normal((16, 12)), jnp.float32)
  params['pooled_embed'] = jax.tree.map(jnp.zeros_like, params['pooled_embed'])  # the map is the only way left
  assert np.abs(read(params, pooled) - read(params, pooled[::-1])).max() > 1e-2


def test_bad_sizes_are_refused_in_words():
  x, t, cond = jnp.zeros((1, 8, 6, 4)), jnp.zeros(1), {'text': jnp.zeros((1, 3, 4))}
  with pytest.raises(ValueError, match='do not divide into patches of 3'):
    jax.eval_shape(NET.clone(patch=3).init, jax.random.key(0), x, t, cond)
  with pytest.raises(ValueError, match='for images of 256, 512 or 1024 pixels, not 300'):
    pixart_alpha(300)
