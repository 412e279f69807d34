"""MMDiT against diffusers' SD3 and Flux transformers, the published counts, and what a token may see."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxgen.models.mmdit import MMDiT, mmdit

GOLDEN = pathlib.Path(__file__).parent / 'golden'
NETS = {  # golden file -> the same network here; random weights of diffusers 0.42.1, in our layout
  'mmdit_sd3': MMDiT(patch=2, depth=3, width=16, heads=2, table=(6, 4)),
  'mmdit_sd35': MMDiT(patch=2, depth=3, width=16, heads=2, dual=1, qk_norm=True, table=(6, 4)),
  'mmdit_flux': MMDiT(patch=2, depth=2, width=16, heads=2, single=2, qk_norm=True, rope=(4, 2, 2), guidance=True),
}


def _golden(name):
  with np.load(GOLDEN / f'{name}.npz') as file:
    arrays = {key: jnp.asarray(file[key]) for key in file}
  params = {k.removeprefix('params/'): v for k, v in arrays.items() if k.startswith('params/')}
  cond = {key: arrays[key] for key in ('text', 'pooled', 'guidance')}
  return traverse_util.unflatten_dict(params, sep='/'), arrays['x'], arrays['t'], cond, arrays['out']


@pytest.mark.parametrize('name', NETS)
def test_forward_is_that_of_diffusers(name):
  params, x, t, cond, out = _golden(name)
  found = jax.jit(NETS[name].apply)({'params': params}, x, t, cond)
  np.testing.assert_allclose(found, out, atol=2e-5 * np.abs(out).max())


@pytest.mark.parametrize('name', ['mmdit_sd3', 'mmdit_flux'])
def test_masked_text_is_not_seen_and_the_rest_is(name):
  params, x, t, cond, _ = _golden(name)
  mask = np.ones(cond['text'].shape[:2], bool)
  mask[:, 3:] = False

  def energy(text):
    return jnp.sum(NETS[name].apply({'params': params}, x, t, cond | {'text': text, 'text_mask': mask}) ** 2)

  gradient = np.abs(jax.jit(jax.grad(energy))(jnp.asarray(cond['text']))).sum(axis=(0, 2))
  assert (gradient[:3] > 0).all() and (gradient[3:] == 0).all()


@pytest.mark.parametrize(
  ('name', 'text', 'pooled', 'count'),
  [('sd3-medium', 4096, 2048, 2_028_328_000), ('flux-dev', 4096, 768, 11_901_408_320)],
)
def test_published_sizes_have_the_published_counts(name, text, pooled, count):
  def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  cond = {'text': array(1, 7, text), 'pooled': array(1, pooled), 'guidance': array(1)}
  net = mmdit(name)
  made = jax.eval_shape(lambda *args: net.init(jax.random.key(0), *args), array(1, 8, 8, 16), array(1), cond)
  assert sum(leaf.size for leaf in jax.tree.leaves(made)) == count


def test_bad_sizes_are_refused_in_words():
  x, t, cond = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), {'text': jnp.zeros((1, 3, 4)), 'pooled': jnp.zeros((1, 4))}
  small = MMDiT(patch=2, depth=2, width=16, heads=2)
  with pytest.raises(ValueError, match='do not divide into patches of 3'):
    jax.eval_shape(small.clone(patch=3).init, jax.random.key(0), x, t, cond)
  with pytest.raises(ValueError, match='exceed the table of 3 positions'):
    jax.eval_shape(small.clone(table=(3, 2)).init, jax.random.key(0), x, t, cond)
  with pytest.raises(ValueError, match=r'rotary axes of \(2, 2\) do not add up to heads of 8'):
    jax.eval_shape(small.clone(rope=(2, 2)).init, jax.random.key(0), x, t, cond)
  with pytest.raises(ValueError, match="there is no MMDiT 'sd4'; wanted one of sd3-medium"):
    mmdit('sd4')
