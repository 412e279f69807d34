"""DiT's options: what each adds to the parameters, and the property it is named after."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models import dit
from jaxgen.models.layers import remat, rope
from jaxgen.models.layers.attention import Attention

_WIDTH, _HEADS, _DEPTH = 32, 2, 2
_small = functools.partial(dit.DiT, patch=2, depth=_DEPTH, width=_WIDTH, heads=_HEADS, num_classes=5)
_draw = np.random.default_rng(0).standard_normal
_x = jnp.asarray(_draw((2, 8, 8, 3), np.float32))
_t = jnp.array([3.0, 700.0])
_all = {
  'interval': True,
  'qk_norm': True,
  'rms_norm': True,
  'swiglu': True,
  'rope': True,
  'registers': 3,
  'bottleneck': 6,
}
_head = _WIDTH // _HEADS
_cond = {'label': jnp.array([1, 5]), 'interval': jnp.array([0.0, 300.0])}


def _shapes(net):
  return jax.eval_shape(lambda key: net.init(key, _x, _t, _cond)['params'], jax.random.key(0))


def _count(net):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_shapes(net)))


def _drawn(shapes, scale=0.1):
  """Parameters without running an initialiser: noise about 0, and about 1 for the scales of norms."""
  draw = np.random.default_rng(2).standard_normal

  def leaf(path, shape):
    return jnp.asarray((path[-1].key == 'scale') + scale * draw(shape.shape, np.float32))

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def _params(net, scale=0.1):
  return _drawn(_shapes(net), scale)


@functools.partial(jax.jit, static_argnums=0)
def _forward(net, params, x=_x, t=_t, cond=_cond):
  return net.apply({'params': params}, x, t, cond)


@functools.partial(jax.jit, static_argnums=0)
def _apply(layer, params, *inputs, **options):
  return layer.apply({'params': params}, *inputs, **options)


@pytest.mark.parametrize(
  ('fields', 'added'),
  [
    ({'interval': True}, 256 * _WIDTH + _WIDTH + _WIDTH**2 + _WIDTH),
    ({'qk_norm': True}, _DEPTH * 2 * _head),
    ({'rms_norm': True}, (_DEPTH * 2 + 1) * _WIDTH),
    # Three matrices and biases of width 88, the multiple of 8 after 2/3 of 128, in place of two of width 128.
    ({'swiglu': True}, _DEPTH * (3 * 88 * _WIDTH + 2 * 88 - (2 * 128 * _WIDTH + 128))),
    ({'rope': True}, 0),
    ({'registers': 3}, 3 * _WIDTH),
    ({'bottleneck': 6}, 12 * 6 + 6 + 6 * _WIDTH - 12 * _WIDTH),  # a patch is 2 x 2 x 3
  ],
)
def test_parameters_that_an_option_adds(fields, added):
  assert _count(_small(**fields)) - _count(_small()) == added


def test_interval_has_an_embedding_of_its_own():
  """Without the interval's part the network is the default one: the two embeddings are summed."""
  net = _small(interval=True)
  params = _params(net)
  silent = params | {'interval_embed': jax.tree.map(jnp.zeros_like, params['interval_embed'])}
  plain = {name: part for name, part in params.items() if name != 'interval_embed'}
  np.testing.assert_array_equal(_forward(net, silent), _forward(_small(), plain))
  assert np.abs(_forward(net, params) - _forward(net, silent)).max() > 1e-3


def test_interval_is_needed_when_on():
  with pytest.raises(KeyError, match='interval'):
    _small(interval=True).init(jax.random.key(0), _x, _t, {'label': _cond['label']})


@pytest.mark.slow
def test_forward_mode_is_the_slope_in_time_and_interval():
  """MeanFlow's derivative: along (x, t, interval) at once."""
  net = _small(**_all, remat=remat.policy('full'))
  params = _params(net, scale=0.2)
  tangents = (0.1 * jnp.ones_like(_x), jnp.ones_like(_t), jnp.ones_like(_t))

  def at(x, t, interval):
    return net.apply({'params': params}, x, t, _cond | {'interval': interval})

  primals = (_x, _t, _cond['interval'])
  _, slope = jax.jit(functools.partial(jax.jvp, at))(primals, tangents)
  step = 1e-2
  ahead, behind = (jax.jit(at)(*(p + s * d for p, d in zip(primals, tangents, strict=True))) for s in (step, -step))
  np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=0.02, atol=5e-3)


@pytest.mark.slow
def test_ways_to_run_the_stack_agree_with_all_options_on():
  net = _small(**_all)
  params = _params(net, scale=0.05)

  def values(net):
    def loss(params):
      return jnp.sum(jnp.square(net.apply({'params': params}, _x, _t, _cond, train=True)))

    return jax.jit(jax.value_and_grad(loss))(params)

  expected = values(net)
  got = values(net.clone(remat=remat.policy('full')))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, expected)


def test_bfloat16_activations_are_close_to_float32_with_all_options_on():
  net = _small(**_all)
  params = _params(net, scale=0.05)
  exact, half = _forward(net, params), _forward(net.clone(dtype=jnp.bfloat16), params)
  assert 0 < jnp.linalg.norm(half - exact) / jnp.linalg.norm(exact) < 0.02


@pytest.mark.slow
def test_products_are_bfloat16_with_all_options_on():
  block = dit.Block(_HEADS, 4, jnp.bfloat16, qk_norm=True, rms_norm=True, swiglu=True)
  inputs = jnp.ones((2, 16, _WIDTH), jnp.bfloat16), jnp.ones((2, _WIDTH), jnp.bfloat16)
  inputs += (jnp.asarray(rope.angles_2d(4, 4, _head)),)
  shapes = jax.eval_shape(lambda key: block.init(key, *inputs)['params'], jax.random.key(0))
  jaxpr = str(jax.make_jaxpr(lambda params: block.apply({'params': params}, *inputs))(shapes))
  products = [line for line in jaxpr.splitlines() if '= dot_general[' in line]
  assert sum(':f32' in line for line in products) == 1, products  # attention's logits
  assert len(products) > 6


def test_qk_norm_is_the_reference_and_forgets_the_size_of_queries_and_keys():
  layer = Attention(_HEADS, qk_norm=nn.RMSNorm)
  x = jnp.asarray(_draw((2, 5, _WIDTH), np.float32))
  params = _drawn(jax.eval_shape(lambda key: layer.init(key, x)['params'], jax.random.key(0)))
  qkv = np.einsum('bld,dsnh->sblnh', x, params['qkv']['kernel']) + np.asarray(params['qkv']['bias'])[:, None, None]

  def rms(y, scale):
    return y / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-6) * np.broadcast_to(scale, y.shape)

  q, k = rms(qkv[0], params['q_norm']['scale']), rms(qkv[1], params['k_norm']['scale'])
  weights = nn.softmax(jnp.einsum('blnh,bknh->bnlk', q, k) / math.sqrt(_head))
  mixed = jnp.einsum('bnlk,bknh->blnh', weights, qkv[2])
  expected = jnp.einsum('blnh,nhd->bld', mixed, params['out']['kernel']) + params['out']['bias'][None, None]
  np.testing.assert_allclose(_apply(layer, params, x), expected, rtol=1e-4, atol=1e-5)
  larger = jnp.asarray([7.0, 3.0, 1.0]).reshape(1, 3, 1, 1)
  qkv_larger = {
    'kernel': params['qkv']['kernel'] * larger,
    'bias': params['qkv']['bias'] * larger[0],
  }
  np.testing.assert_allclose(_apply(layer, params | {'qkv': qkv_larger}, x), expected, rtol=1e-4, atol=1e-4)


def test_rms_norm_keeps_the_mean():
  """Layer norm does not see a constant added to all features; RMS norm does, and does not see a factor."""
  net, other = _small(rms_norm=True), _small()
  params = _params(net)
  x = jnp.asarray(_draw((2, 5, _WIDTH), np.float32))
  c = jnp.asarray(_draw((2, _WIDTH), np.float32))
  final = dit.FinalLayer(12, jnp.float32, rms_norm=True)

  def last(layer, x):
    return _apply(layer, {k: v for k, v in params['final'].items() if layer.rms_norm or k != 'norm'}, x, c)

  plain = dit.FinalLayer(12, jnp.float32)
  np.testing.assert_allclose(last(plain, x + 3), last(plain, x), rtol=1e-3, atol=1e-3)
  assert np.abs(last(final, x + 3) - last(final, x)).max() > 0.1
  np.testing.assert_allclose(last(final, 5 * x), last(final, x), rtol=1e-4, atol=1e-4)
  assert set(_shapes(net)['blocks']) - set(_shapes(other)['blocks']) == {'norm1', 'norm2'}


def test_swiglu_is_the_reference():
  layer = dit.Mlp(4, jnp.float32, swiglu=True)
  x = jnp.asarray(_draw((2, 3, _WIDTH), np.float32))
  params = _drawn(jax.eval_shape(lambda key: layer.init(key, x)['params'], jax.random.key(0)))

  def line(name, y):
    return np.asarray(y) @ np.asarray(params[name]['kernel']) + np.asarray(params[name]['bias'])[None, None]

  gate = line('gate', x)
  expected = line('out', gate / (1 + np.exp(-gate)) * line('in', x))
  np.testing.assert_allclose(_apply(layer, params, x), expected, rtol=1e-4, atol=1e-5)


def test_rotary_logits_depend_on_differences_of_positions_only():
  rows, columns, size = 5, 6, 8
  angles = jnp.asarray(rope.angles_2d(rows, columns, size))
  q, k = (jnp.broadcast_to(jnp.asarray(v), (1, rows * columns, 1, size)) for v in _draw((2, size)).astype(np.float32))
  logits = jnp.einsum('blnh,bknh->lk', rope.rotate(q, angles), rope.rotate(k, angles))
  logits = np.asarray(logits).reshape(rows, columns, rows, columns)
  seen = {}
  for (i, j, m, n), logit in np.ndenumerate(logits):
    seen.setdefault((m - i, n - j), []).append(logit)
  assert max(np.ptp(values) for values in seen.values()) < 1e-4
  means = np.sort([np.mean(values) for values in seen.values()])
  assert len(means) == (2 * rows - 1) * (2 * columns - 1)
  assert np.diff(means).min() > 0  # and each difference has a logit of its own
  np.testing.assert_allclose(logits[0, 0, 0, 0], np.sum(np.asarray(q)[0, 0, 0] * np.asarray(k)[0, 0, 0]), rtol=1e-5)


def test_attention_sees_rotary_positions_only_by_their_differences():
  layer = Attention(_HEADS, qk_norm=nn.RMSNorm)
  x = jnp.asarray(_draw((2, 12, _WIDTH), np.float32))
  params = _drawn(jax.eval_shape(lambda key: layer.init(key, x)['params'], jax.random.key(0)))
  grid = rope.angles_2d(5, 4, _head)
  here, there = jnp.asarray(grid[:12]), jnp.asarray(grid[8:])  # the same 3 by 4 places, two rows further down
  out = _apply(layer, params, x, angles=here)
  np.testing.assert_allclose(_apply(layer, params, x, angles=there), out, rtol=1e-4, atol=1e-5)
  assert np.abs(_apply(layer, params, x, angles=here[::-1]) - out).max() > 1e-3


def test_rotary_halves_are_rows_and_columns():
  q = jnp.asarray(_draw((1, 12, 2, 8)).astype(np.float32))
  change = np.abs(rope.rotate(q, jnp.asarray(rope.angles_2d(3, 4, 8))) - q).max(axis=(0, 2))  # l h
  row, column = np.divmod(np.arange(12), 4)
  of_row = np.array([0, 1, 4, 5])  # feature i turns with i + 4
  assert ((change[:, of_row] > 0).all(axis=1) == (row > 0)).all()
  assert ((change[:, of_row + 2] > 0).all(axis=1) == (column > 0)).all()
  np.testing.assert_array_equal(change[row == 0][:, of_row], 0)
  np.testing.assert_array_equal(change[column == 0][:, of_row + 2], 0)


def test_rotary_positions_need_heads_divisible_by_four():
  with pytest.raises(ValueError, match='divisible by 4, got 6'):
    rope.angles_2d(2, 2, 6)


def test_rope_is_the_only_position():
  """With it the network on a constant image is constant over patches; with added positions it is not."""
  image = jnp.ones_like(_x)
  for net, constant in ((_small(rope=True), True), (_small(), False)):
    tokens = np.asarray(dit.patchify(_forward(net, _params(net), image), 2))
    assert (np.ptp(tokens, axis=1).max() < 1e-4) == constant
  net = _small(rope=True)
  params = _params(net)
  moved = _forward(net, params, _x[:, ::-1, ::-1])[:, ::-1, ::-1]
  assert np.abs(moved - _forward(net, params)).max() > 1e-3  # yet it is not blind to the places


def test_registers_attend_and_are_dropped():
  net = _small(registers=3)
  params = _params(net)
  out = _forward(net, params)
  assert out.shape == _x.shape
  for i in range(3):
    changed = params | {'register_tokens': params['register_tokens'].at[i, 0].add(3)}
    assert np.abs(_forward(net, changed) - out).min(axis=-1).max() > 1e-3
  angles = np.asarray(net._angles((4, 4)))
  np.testing.assert_array_equal(angles, np.concatenate([rope.angles_2d(4, 4, _head), np.zeros((3, _head // 2))]))
  order = params | {'register_tokens': params['register_tokens'][::-1]}
  for fields in ({}, {'rope': True}):  # no register has a place
    np.testing.assert_allclose(
      _forward(net.clone(**fields), order), _forward(net.clone(**fields), params), rtol=1e-4, atol=1e-5
    )


def test_bottleneck_limits_the_rank_of_the_embedding():
  net = _small(bottleneck=6)
  params = _params(net)
  assert params['patch_bottleneck']['kernel'].shape == (12, 6)
  # A patch that the bottleneck does not see does not matter.
  null = np.linalg.svd(np.asarray(params['patch_bottleneck']['kernel']).T)[2][-1]
  unseen = dit.unpatchify(jnp.broadcast_to(jnp.asarray(null)[None, None], (2, 16, 12)), (4, 4), 2)
  out = _forward(net, params)
  np.testing.assert_allclose(_forward(net, params, _x + unseen), out, rtol=1e-3, atol=1e-4)
  assert np.abs(_forward(net, params, _x + jnp.roll(unseen, 1, axis=-1)) - out).max() > 1e-2


@pytest.mark.parametrize(('size', 'millions'), [('B/16', 131), ('B/32', 133), ('L/16', 459), ('H/16', 953)])
def test_jit_has_the_published_sizes(size, millions):
  net = dit.jit(size, num_classes=1000)
  x, cond = jnp.zeros((1, net.patch, net.patch, 3)), {'label': jnp.zeros(1, int)}
  shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), cond)
  assert round(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6) == millions


def test_an_unknown_jit_is_answered_with_the_known_ones():
  with pytest.raises(ValueError, match="JiT size 'B/4' is unknown; wanted one of B, L, H, then /16 or /32"):
    dit.jit('B/4')
