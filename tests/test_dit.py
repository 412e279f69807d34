"""DiT: published sizes, the ways to run its stack, its initialisation."""

import functools
import math
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from test_models import perturbed

from jaxgen.models import dit
from jaxgen.models.layers import attention, embedding, remat

_small = functools.partial(dit.DiT, patch=2, depth=3, width=32, heads=2, num_classes=5)
_draw = np.random.default_rng(0).standard_normal
_x = jnp.asarray(_draw((2, 8, 8, 4), np.float32))
_t = jnp.array([3.0, 700.0])
_cond = {'label': jnp.array([1, 5])}


@pytest.fixture(scope='module')
def params():
  init = jax.jit(lambda key: _small().init(key, _x, _t, _cond)['params'])
  return perturbed(init(jax.random.key(0)), scale=0.05)


def _loss(net, params):
  return jnp.sum(jnp.square(net.apply({'params': params}, _x, _t, _cond, train=True)))


def _values(net, params):
  return jax.jit(jax.value_and_grad(functools.partial(_loss, net)))(params)


@pytest.mark.parametrize(
  ('size', 'count'),
  [
    ('S/2', 32_865_056),
    ('S/4', 32_920_448),
    ('B/2', 130_315_808),
    ('L/2', 457_840_672),
    ('XL/2', 674_834_720),
  ],
)
def test_published_parameter_counts(size, count):
  net = dit.dit(size, num_classes=1000, learn_sigma=True)
  init = functools.partial(net.init, x=jnp.zeros((1, 32, 32, 4)), t=jnp.zeros(1), cond={'label': jnp.zeros(1, int)})
  shapes = jax.eval_shape(init, jax.random.key(0))
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize('size', ['M/2', 'S/3', 'S', 'XL'])
def test_unknown_size_names_the_known_ones(size):
  with pytest.raises(ValueError, match=rf"{size}' is unknown; wanted one of S, B, L, XL, then /2, /4 or /8"):
    dit.dit(size)


def test_images_that_do_not_divide_into_patches_are_refused(params):
  with pytest.raises(ValueError, match='images of 8x7 do not divide into patches of 2'):
    _small().apply({'params': params}, _x[:, :, :7], _t, _cond)


def test_patches_are_inverted():
  x = _draw((2, 6, 4, 3), np.float32)
  tokens = dit.patchify(jnp.asarray(x), 2)
  np.testing.assert_array_equal(tokens[0, 3].reshape(2, 2, 3), x[0, 2:4, 2:4])  # row-major over a 3 by 2 grid
  np.testing.assert_array_equal(dit.unpatchify(tokens, (3, 2), 2), x)


def test_initialisation_is_the_papers():
  net = _small(width=64, depth=4)
  made = jax.jit(net.init)(jax.random.key(0), _x, _t, _cond)['params']
  flat = traverse_util.flatten_dict(made, sep='/')
  for path in ('blocks/modulation/kernel', 'final/modulation/kernel', 'final/linear/kernel'):
    assert not flat[path].any(), path
  for path in (name for name in flat if name.endswith('bias')):
    assert not flat[path].any(), path
  for path in ('time_embed/in/kernel', 'time_embed/out/kernel', 'label_embed/table/embedding'):
    assert float(flat[path].std()) == pytest.approx(0.02, rel=0.1), path
  fans = {'qkv': (64, 192), 'out': (64, 64), 'in': (64, 256)}  # of the whole matrix, heads and q, k, v together
  for name, (fan_in, fan_out) in fans.items():
    path = f'blocks/mlp/{name}/kernel' if name == 'in' else f'blocks/attention/{name}/kernel'
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert 0.98 * bound < float(jnp.abs(flat[path]).max()) <= bound, path
  qkv = flat['blocks/attention/qkv/kernel']
  assert not np.allclose(qkv[0], qkv[1])  # each block has a draw of its own


@pytest.mark.parametrize('fields', [{'remat': remat.policy('dots')}, {'remat': remat.policy('full')}])
def test_ways_to_run_the_stack_give_the_same_numbers(params, fields):
  loss, grads = _values(_small(), params)
  other_loss, other_grads = _values(_small(**fields), params)
  np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), grads, other_grads)


def test_scan_equals_the_blocks_one_after_another(params):
  """The network's middle, from patches to the last layer, computed with plain `Block`s."""
  net, layers = _small(), {name: {'params': params[name]} for name in params}

  @jax.jit
  def loop(params):
    c = dit.TimeEmbedding(net.width).apply(layers['time_embed'], _t)
    c = nn.silu(c + dit.LabelEmbedding(5, net.width).apply(layers['label_embed'], _cond['label']))
    x = dit.Linear(net.width).apply(layers['patch_embed'], dit.patchify(_x, 2))
    x += embedding.sincos_2d(4, 4, net.width)[None]
    for i in range(net.depth):
      block = dit.Block(net.heads, net.mlp_ratio, net.dtype)
      x = block.apply({'params': jax.tree.map(operator.itemgetter(i), params['blocks'])}, x, c)
    return dit.unpatchify(dit.FinalLayer(16, net.dtype).apply(layers['final'], x, c), (4, 4), 2)

  scanned = jax.jit(net.apply)({'params': params}, _x, _t, _cond)
  np.testing.assert_allclose(scanned, loop(params), rtol=1e-5, atol=1e-5)


def _residuals(net, params):
  """Bytes that the forward pass keeps for the backward pass."""
  _, vjp = jax.eval_shape(lambda p: jax.vjp(functools.partial(_loss, net), p), params)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(vjp))


def test_remat_keeps_less(params):
  none, dots, full = (_residuals(_small(remat=remat.policy(name)), params) for name in ('none', 'dots', 'full'))
  assert full < dots < none
  net, tokens = _small(), 16
  products = (3 + 1 + net.mlp_ratio + 1) * tokens + 6  # features for each of a block's tokens, and its modulation
  assert dots - full <= 4 * net.depth * len(_x) * net.width * products


def test_unknown_remat_policy_names_the_known_ones():
  with pytest.raises(ValueError, match="'all' is unknown; one of none, dots, offload, full"):
    remat.policy('all')


def test_program_does_not_grow_with_depth():
  def size(depth):
    net = _small(depth=depth, remat=remat.policy('full'))  # or on an accelerator
    shapes = jax.eval_shape(net.init, jax.random.key(0), _x, _t, _cond)['params']
    jaxpr = jax.make_jaxpr(jax.grad(functools.partial(_loss, net)))(shapes)
    return str(jaxpr).count(' = ')  # equations; lines wrap by the length of numbers

  assert size(28) == size(2)


def test_bfloat16_activations_are_close_to_float32(params):
  apply = jax.jit(lambda net, params: net.apply({'params': params}, _x, _t, _cond), static_argnums=0)
  exact, half = apply(_small(), params), apply(_small(dtype=jnp.bfloat16), params)
  error = float(jnp.linalg.norm(half - exact) / jnp.linalg.norm(exact))
  assert 0 < error < 0.02


def test_attention_is_the_weighted_mean_of_the_values():
  q, k, v = jnp.asarray(_draw((3, 2, 5, 3, 4), np.float32))
  out = attention.attention(q, k[:, :4], v[:, :4])
  for b, n in np.ndindex(2, 3):
    logits = np.asarray(q[b, :, n], np.float64) @ np.asarray(k[b, :4, n], np.float64).T / 2
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(out[b, :, n], weights @ v[b, :4, n], rtol=1e-4, atol=1e-5)


def test_softmax_is_float32_in_half_precision():
  jaxpr = str(jax.make_jaxpr(attention.attention)(*[jnp.ones((1, 4, 2, 8), jnp.bfloat16)] * 3))
  exps = [line for line in jaxpr.splitlines() if ' = exp ' in line]
  assert exps
  assert all('f32' in line for line in exps)


def test_positions_need_a_width_divisible_by_four():
  with pytest.raises(ValueError, match='divisible by 4, got 30'):
    embedding.sincos_2d(2, 2, 30)
