"""The fused kernels against Eq. 1 in two einsums, and who gets which."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxgen import flops, sharding
from jaxgen.models.layers import remat, splash
from jaxgen.models.layers.attention import (
  Attention,
  Choice,
  Decoupled,
  KeysValues,
  _kernel,
  _Task,
  attention,
  cudnn_attention,
  splash_attention,
  unfused,
  xla_attention,
)
from jaxgen.models.layers.attention_edit import Edit
from jaxgen.models.layers.blocked import blocked_attention
from jaxgen.objectives.few_step.scm import tangent

_SIZES = {'data': 2, 'fsdp': 2, 'sequence': 1, 'tensor': 2}


def _tpu(**sizes):
  """A mesh of TPUs that are not there."""
  sizes = tuple((_SIZES | sizes)[axis] for axis in sharding.AXES)
  device = AbstractDevice(device_kind='TPU v5 lite', num_cores=1, platform='tpu')
  return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * 4, abstract_device=device)


def _arrays(queries=256, keys=256, batch=4, heads=2, size=72, dtype=jnp.float32):
  draw = np.random.default_rng(0)
  lengths = (queries, keys, keys)
  return tuple(jnp.asarray(draw.standard_normal((batch, n, heads, size)), dtype) for n in lengths)


def _kernels(mesh, *arrays, function=attention):
  """How many Pallas kernels are in the trace."""
  with jax.sharding.use_abstract_mesh(mesh):
    return str(jax.make_jaxpr(function)(*arrays)).count('pallas_call')


@pytest.mark.parametrize(('keys', 'products'), [(128, 5), (1024, 5), (640, 7)])  # 1 and 2 blocks of keys; 5
def test_splash_and_its_gradient_are_attention(keys, products):
  q, k, v = _arrays(queries=128, keys=keys, batch=1, heads=1)
  weights = jnp.cos(jnp.arange(q.size)).reshape(q.shape)

  def both(attend):
    return jax.jit(jax.value_and_grad(lambda q, k, v: jnp.sum(weights * attend(q, k, v)), (0, 1, 2)))(q, k, v)

  for mask in (None, jnp.arange(keys)[None] < 77):
    ours = both(functools.partial(splash.splash_attention, mask=mask, scale=0.2, interpret=True))
    wanted = both(functools.partial(xla_attention, mask=mask, scale=0.2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, wanted)
  attend = functools.partial(splash.splash_attention, interpret=True)
  counted = flops.count(lambda *arrays: jax.vjp(attend, *arrays)[1](q), q, k, v)
  # The forward pass has two products, the backward one five in one kernel and seven in two; the rest is small.
  assert round(counted / (2 * 128 * keys * splash.LANES)) == 2 + products


@pytest.mark.parametrize(('tokens', 'block'), [(128, 128), (256, 256), (384, 384), (640, 128), (4096, 512)])
def test_blocks_divide_the_tokens(tokens, block):
  assert splash.block(tokens) == block


def test_a_program_for_tpus_has_their_kernel_whatever_machine_traces_it():
  assert jax.default_backend() == 'cpu'
  assert _kernels(_tpu(), *_arrays(dtype=jnp.bfloat16)) == 1
  assert 'pallas' not in str(jax.make_jaxpr(attention)(*_arrays()))


@pytest.mark.parametrize(
  ('mesh', 'arrays'),
  [
    ({}, {'queries': 100, 'keys': 100}),  # blocks are of 128 tokens
    ({}, {'keys': 77}),
    ({}, {'batch': 1}),  # initialisation
    ({'tensor': 4}, {}),  # more devices than heads
    ({'sequence': 4}, {}),  # 64 queries on a device
  ],
)
def test_what_splash_cannot_do_xla_does(mesh, arrays):
  assert _kernels(_tpu(**mesh), *_arrays(**arrays)) == 0


def test_forward_derivatives_need_unfused_attention():
  q, k, v = _arrays()

  def derivative(q, k, v):
    return jax.jvp(lambda q: attention(q, k, v), (q,), (q,))[1]

  def unfused_derivative(q, k, v):
    with unfused():
      return derivative(q, k, v)

  assert _kernels(_tpu(), q, k, v, function=derivative) > 0  # which has none, and would fail to compile
  assert _kernels(_tpu(), q, k, v, function=unfused_derivative) == 0


def test_the_tangent_of_a_consistency_model_is_a_forward_derivative():
  def derivative(q, k, v):
    network = lambda x, t: attention(x, k, v)  # noqa: E731
    return tangent(network, q, jnp.full(len(q), 0.5), q, q, data_std=0.5)[1]

  assert _kernels(_tpu(), *_arrays(), function=derivative) == 0


def test_operations_of_the_kernel_are_those_of_all_devices_with_padded_heads():
  q, k, v = _arrays()
  with jax.sharding.use_abstract_mesh(_tpu()):
    assert flops.count(attention, q, k, v) == 2 * (2 * 4 * 2 * 256 * 256 * splash.LANES)


def test_queries_split_over_sequence_attend_to_all_keys():
  arrays = _arrays(queries=32, keys=20, heads=4, size=8)
  mesh = sharding.make_mesh(data=1, fsdp=2, sequence=2, tensor=2)
  arrays = jax.device_put(arrays, sharding.batch_sharding(mesh))
  split = jax.jit(sharding.under(mesh, attention)).lower(*arrays).compile()
  np.testing.assert_allclose(split(*arrays), xla_attention(*arrays), rtol=1e-5, atol=1e-6)
  assert 'f32[2,2,16,20]' in split.as_text()  # weights of 2 images, 2 heads, half the queries, all keys


def test_each_choice_is_logged_once(caplog):
  arrays = _arrays(queries=384, keys=384, size=40)
  with caplog.at_level(logging.INFO, logger='absl'):
    for _ in range(2):
      _kernels(_tpu(), *arrays)
  lines = [record.message for record in caplog.records if '384 queries' in record.message]
  assert lines == ['attention on tpu, float32, 384 queries on 384 keys, heads of 40: splash_attention']


@pytest.mark.parametrize(
  ('dtype', 'size', 'keys', 'mask', 'biased', 'kernel'),
  [
    (jnp.bfloat16, 72, 64, None, False, cudnn_attention),
    (jnp.bfloat16, 72, 77, None, False, cudnn_attention),
    (jnp.bfloat16, 72, 64, 3, True, cudnn_attention),
    (jnp.bfloat16, 72, 77, 2, False, xla_attention),
    (jnp.float32, 64, 64, None, False, xla_attention),
    (jnp.float16, 192, 64, None, False, xla_attention),
    (jnp.float16, 20, 64, None, False, xla_attention),
  ],
)
def test_gpus_take_half_precision_and_some_shapes(dtype, size, keys, mask, biased, kernel):
  task = _Task(str(jnp.dtype(dtype)), (2, 64, 4, size), keys, False, mask, biased)
  assert _kernel('gpu', task, Choice.FUSED) is kernel


@pytest.mark.parametrize(
  ('mask', 'biased', 'kernel'), [(2, False, splash_attention), (3, False, xla_attention), (None, True, xla_attention)]
)
def test_tpus_take_masks_of_keys(mask, biased, kernel):
  assert _kernel('tpu', _Task('bfloat16', (2, 128, 4, 64), 256, True, mask, biased), Choice.FUSED) is kernel


def test_a_forward_derivative_over_many_tokens_is_by_blocks():
  for keys, mask, kernel in ((1024, 2, blocked_attention), (1024, 3, xla_attention), (64, None, xla_attention)):
    assert _kernel('tpu', _Task('bfloat16', (2, keys, 4, 64), keys, True, mask), Choice.FORWARD) is kernel


def test_a_mask_of_keys_is_in_the_kernel_for_tpus():
  q, k, v = _arrays(dtype=jnp.bfloat16)
  masked = functools.partial(attention, mask=jnp.arange(256)[None] < 100)
  assert _kernels(_tpu(), q, k, v, function=masked) == 1


def _expected(q, k, v, allowed, bias, scale):
  """Eq. 1 in float64, one image and one head at a time."""
  q, k, v, allowed, bias = (np.asarray(array, np.float64) for array in (q, k, v, allowed, bias))
  out = np.zeros_like(q)
  for b, n in np.ndindex(q.shape[0], q.shape[2]):
    weights = np.exp(scale * q[b, :, n] @ k[b, :, n].T + bias[b, n]) * allowed[b]
    out[b, :, n] = weights / weights.sum(1, keepdims=True) @ v[b, :, n]
  return out


@pytest.mark.parametrize('shards', [False, True])
def test_masks_and_biases_are_those_of_equation_1(shards):
  q, k, v = _arrays(queries=8, keys=6, heads=4, size=4)
  draw = np.random.default_rng(1)
  keys, pairs = (jnp.asarray(draw.random(shape) < 0.7).at[..., 0].set(True) for shape in ((4, 6), (1, 8, 6)))
  bias = jnp.asarray(draw.standard_normal((1, 4, 8, 6)), jnp.float32)

  def attend(q, k, v, keys, pairs, bias):
    return attention(q, k, v, mask=keys, scale=0.3), attention(q, k, v, mask=pairs, bias=bias)

  if shards:
    mesh = sharding.make_mesh(data=1, fsdp=2, sequence=2, tensor=2)
    attend = sharding.under(mesh, attend)
    q, k, v, keys, pairs, bias = jax.device_put((q, k, v, keys, pairs, bias), sharding.replicated(mesh))
  by_keys, by_pairs = jax.jit(attend)(q, k, v, keys, pairs, bias)
  zeros, everyone = np.zeros((4, 4, 8, 6)), np.ones((4, 8, 6))
  np.testing.assert_allclose(by_keys, _expected(q, k, v, everyone * keys[:, None], zeros, 0.3), rtol=1e-4, atol=1e-5)
  expected = _expected(q, k, v, everyone * pairs, zeros + np.asarray(bias), 0.5)
  np.testing.assert_allclose(by_pairs, expected, rtol=1e-4, atol=1e-5)


_draw = np.random.default_rng(2).standard_normal
_x = jnp.asarray(_draw((2, 5, 8)), jnp.float32)
_context = jnp.asarray(_draw((2, 3, 6)), jnp.float32)


@pytest.fixture(scope='module')
def cross():
  """Attention to a context, and its parameters."""
  layer = Attention(2, fused=False, qkv_bias=False)
  return layer, jax.jit(layer.init)(jax.random.key(0), _x, _context)


def _heads(params, name, tokens):
  return jnp.einsum('bld,dnh->blnh', tokens, params['params'][name]['kernel'])


def _out(params, h):
  out = params['params']['out']
  return jnp.einsum('blnh,nhd->bld', h, out['kernel']) + out['bias'].reshape(1, 1, -1)


def test_joined_keys_share_the_softmax(cross):
  layer, params = cross
  more = KeysValues(*(jnp.asarray(_draw((2, 4, 2, 4)), jnp.float32) for _ in range(2)))
  mask = jnp.arange(7)[None] % 3 != 1

  @jax.jit
  def expected(params, more):
    q, k, v = (_heads(params, *pair) for pair in (('query', _x), ('key', _context), ('value', _context)))
    k, v = (jnp.concatenate(pair, 1) for pair in ((k, more.keys), (v, more.values)))
    return _out(params, xla_attention(q, k, v, mask))

  got = jax.jit(lambda params, more: layer.apply(params, _x, _context, joined=more, mask=mask))(params, more)
  np.testing.assert_allclose(got, expected(params, more), rtol=1e-5, atol=1e-5)


def test_decoupled_keys_have_a_softmax_of_their_own(cross):
  layer, params = cross
  more = [Decoupled(*(jnp.asarray(_draw((2, 4, 2, 4)), jnp.float32) for _ in range(2)), scale) for scale in (0.5, -2.0)]

  @jax.jit
  def expected(params):
    q, k, v = (_heads(params, *pair) for pair in (('query', _x), ('key', _context), ('value', _context)))
    return _out(params, xla_attention(q, k, v) + sum(m.scale * xla_attention(q, m.keys, m.values) for m in more))

  got = jax.jit(lambda params: layer.apply(params, _x, _context, decoupled=more))(params)
  np.testing.assert_allclose(got, expected(params), rtol=1e-5, atol=1e-5)


def test_weights_leave_only_when_they_are_asked_for(cross):
  layer, params = cross
  assert set(params) == {'params'}
  out, maps = layer.apply(params, _x, _context, mutable=['maps'])
  np.testing.assert_allclose(out, layer.apply(params, _x, _context), rtol=1e-5, atol=1e-6)
  (weights,) = maps['maps']['weights']
  assert weights.shape == (2, 2, 5, 3)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_an_edit_gives_the_target_the_weights_of_its_source(cross):
  layer, params = cross

  @jax.jit
  def weights(edit):
    return layer.apply(params, _x, _context, edit=edit, mutable=['maps'])[1]['maps']['weights'][0]

  def maps(**fields):
    return np.asarray(weights(Edit(**{name: jnp.asarray(value, jnp.float32) for name, value in fields.items()})))

  plain = maps(blend=np.zeros((2, 1)))
  replaced = maps(blend=[[0], [1]])
  np.testing.assert_array_equal(replaced, plain[[0, 0]])
  order = np.eye(3)[[2, 0, 1]]
  mixed = maps(blend=[[0] * 3, [1, 0.25, 0]], mapping=[order, order], scale=[[1] * 3, [1, 2, 1]])
  np.testing.assert_array_equal(mixed[0], plain[0])
  moved = plain[0] @ order
  np.testing.assert_allclose(mixed[1, ..., 0], moved[..., 0], rtol=1e-5)
  np.testing.assert_allclose(mixed[1, ..., 1], 2 * (0.25 * moved[..., 1] + 0.75 * plain[1, ..., 1]), rtol=1e-5)
  np.testing.assert_allclose(mixed[1, ..., 2], plain[1, ..., 2], rtol=1e-5)
  with pytest.raises(ValueError, match='an attention edit got 1 rows; it wants pairs of a source and its target'):
    layer.apply(params, _x[:1], _context[:1], edit=Edit(jnp.zeros((1, 1))))


def test_a_context_has_no_fused_product():
  with pytest.raises(ValueError, match='attention to a context has no fused product'):
    Attention(2).init(jax.random.key(0), _x, _context)


def test_heads_may_be_of_another_size_than_the_width(cross):
  layer = Attention(3, head_size=4, features=7, out_bias=False)
  params = jax.eval_shape(layer.init, jax.random.key(0), _x)['params']
  shapes = jax.tree.map(lambda leaf: leaf.shape, params)
  assert shapes == {'qkv': {'kernel': (8, 3, 3, 4), 'bias': (3, 3, 4)}, 'out': {'kernel': (3, 4, 7)}}


def test_dots_keeps_what_the_backward_pass_of_splash_attention_needs():
  q, k, v = (jnp.ones((1, 128, 2, 72), jnp.bfloat16) for _ in range(3))

  def attend(q):
    return splash.splash_attention(q, k, v, interpret=True).astype(jnp.float32).sum()

  def operations(name):
    return flops.count(jax.value_and_grad(jax.checkpoint(attend, policy=remat.policy(name))), q)

  assert operations('full') - operations('dots') == flops.count(attend, q)  # the forward pass is not done again
