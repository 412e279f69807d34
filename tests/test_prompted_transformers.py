"""Images as prompts and Prompt-to-Prompt in transformers: PixArt's cross-attention and MMDiT's joint softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.generation.local_blend import attention_maps
from jaxgen.generation.prompt_to_prompt import aligned
from jaxgen.models.layers.attention_edit import Edit, Edits, edited_joint
from jaxgen.models.mmdit import MMDiT
from jaxgen.models.pixart import PixArt

NETS = {
  'pixart': PixArt(patch=2, depth=2, width=16, heads=2, own_modulation=True),
  'sd35': MMDiT(patch=2, depth=3, width=16, heads=2, dual=1, qk_norm=True),
  'flux': MMDiT(patch=2, depth=1, width=16, heads=2, single=1, qk_norm=True, rope=(4, 2, 2)),
}


@pytest.fixture(scope='module', params=['pixart', pytest.param('sd35', marks=pytest.mark.slow), 'flux'])
def model(request):
  """A network, its first parameters and random ones, both with those of an image prompt, and two rows of one x."""
  net, rng = NETS[request.param], np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  x, t = jnp.repeat(normal(1, 4, 8, 3), 2, axis=0), jnp.full(2, 500.0)
  cond = {'text': normal(2, 3, 8), 'pooled': jnp.repeat(normal(1, 8), 2, axis=0)}
  image = {'image_prompt': normal(2, 4, 8), 'image_prompt_scale': jnp.ones(2)}
  first = jax.jit(net.init)(jax.random.key(0), x, t, {**cond, **image})['params']
  params = jax.tree.map(lambda leaf: normal(*leaf.shape) / np.sqrt(max(leaf.shape[-1], 1)), first)
  return net, first, params, x, t, cond, image


def _leaves(tree):
  return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def test_an_image_prompt_is_seen_by_its_scale_and_each_block_has_one(model):
  net, first, params, x, t, cond, image = model
  assert all(np.all(leaf == 0) for path, leaf in _leaves(first) if 'image_value' in path)  # so that it says nothing yet
  apply = jax.jit(lambda params, cond: net.apply({'params': params}, x, t, cond))
  plain = apply(params, cond)
  seen = apply(params, cond | image)
  assert np.abs(seen - plain).max() > 1e-2
  each = np.ones((2, net.depth), np.float32)
  np.testing.assert_allclose(apply(params, cond | image | {'image_prompt_scale': each}), seen, atol=1e-5)
  np.testing.assert_allclose(apply(params, cond | image | {'image_prompt_scale': 0 * each}), plain, atol=1e-6)
  with pytest.raises(ValueError, match=f'7 factors for {net.depth} blocks; give 1 or all'):
    jax.eval_shape(apply, params, cond | image | {'image_prompt_scale': jnp.ones((2, 7))})


def test_an_edit_gives_the_target_the_attention_of_the_source(model):
  net, _, params, x, t, cond, _ = model
  edit = aligned([1, 2, 3], [1, 2, 4])

  @jax.jit
  def apply(text, blend, itself):
    edits = Edits(edit._replace(blend=edit.blend * blend), Edit(jnp.array([[0.0], [1.0]]) * itself))
    return net.apply({'params': params}, x, t, cond | {'text': text, 'attention_edit': edits})

  plain = jax.jit(net.apply)({'params': params}, x, t, cond)
  np.testing.assert_allclose(apply(cond['text'], 0.0, 0.0), plain, atol=1e-5)  # an edit of nothing
  kept = apply(cond['text'], 1.0, 1.0)
  np.testing.assert_allclose(kept[0], plain[0], atol=1e-5)  # the source is left alone
  assert np.abs(kept[1] - plain[1]).max() > 1e-3
  half = apply(cond['text'], 1.0, 0.0)[1]
  assert np.abs(half - plain[1]).max() > 1e-3 and np.abs(half - kept[1]).max() > 1e-3  # each of the two edits counts
  maps = attention_maps(net, params, lambda t: t)(x, t, cond)
  assert maps.shape == (2, 4, 8, 3) and (maps > 0).all() and (maps.sum(axis=-1) < 1 + 1e-5).all()


def test_edited_rows_of_a_joint_softmax_stay_weights():
  rng = np.random.default_rng(1)
  weights = jax.nn.softmax(jnp.asarray(rng.standard_normal((2, 1, 7, 7)), jnp.float32))
  edit = aligned([1, 2, 3], [1, 2, 4], weights={2: 4.0})
  whole = Edit(jnp.array([[0.0], [1.0]]))
  made = edited_joint(weights, Edits(edit._replace(scale=None), whole), tokens=3)
  np.testing.assert_allclose(made[1, :, 3:], weights[0, :, 3:], atol=1e-6)  # all of the source's
  np.testing.assert_array_equal(made[:, :, :3], weights[:, :, :3])  # the text's own rows
  half = edited_joint(weights, Edits(edit._replace(scale=None)), tokens=3)
  np.testing.assert_allclose(half.sum(axis=-1), np.ones((2, 1, 7)), atol=1e-6)
  heavy = edited_joint(weights, Edits(edit), tokens=3)
  np.testing.assert_allclose(heavy[1, :, 3:, 2], 4 * half[1, :, 3:, 2], rtol=1e-5)
