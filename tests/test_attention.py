"""The fused kernels against Eq. 1 in two einsums, and who gets which."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxgen import flops, sharding
from jaxgen.models.layers import splash
from jaxgen.models.layers.attention import _kernel, attention, cudnn_attention, unfused, xla_attention
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


def test_splash_and_its_gradient_are_attention():
  q, k, v = _arrays(queries=128, keys=128, batch=1, heads=1)
  weights = jnp.cos(jnp.arange(q.size)).reshape(q.shape)

  def both(attend):
    return jax.jit(jax.value_and_grad(lambda q, k, v: jnp.sum(weights * attend(q, k, v)), (0, 1, 2)))(q, k, v)

  ours = both(lambda q, k, v: splash.splash_attention(q, k, v, interpret=True))
  wanted = both(xla_attention)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, wanted)


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
  ('dtype', 'size', 'kernel'),
  [
    (jnp.bfloat16, 72, cudnn_attention),
    (jnp.float32, 64, xla_attention),
    (jnp.float16, 192, xla_attention),
    (jnp.float16, 20, xla_attention),
  ],
)
def test_gpus_take_half_precision_and_some_head_sizes(dtype, size, kernel):
  assert _kernel('gpu', jnp.dtype(dtype), (2, 64, 4, size), 64, False, True) is kernel
