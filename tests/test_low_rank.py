"""Kernels of low rank: the numbers of the merged kernel, without it."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.adapters.lora import Kernel
from jaxgen.frozen import frozen, in_int8
from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.int8 import dense, quantized
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.low_rank import LowRank, merged

RANK = 3
LAYERS = {
  'matrix': (Linear(12), (2, 5, 8), (8, RANK), (RANK, 12)),
  'heads': (Linear((3, 2, 4)), (2, 5, 8), (8, RANK), (RANK, 3, 2, 4)),
  'from heads': (Linear(6, inputs=2, use_bias=False), (2, 5, 4, 8), (4, 8, RANK), (RANK, 6)),
  'convolution': (Conv(6, padding=1), (2, 6, 4, 8), (3, 3, 8, RANK), (1, 1, RANK, 6)),
  'strided': (Conv(6, 4, strides=2, padding=((0, 1), (2, 1))), (2, 6, 5, 8), (4, 4, 8, RANK), (1, 1, RANK, 6)),
}


def _drawn(shape, seed=0):
  return jnp.asarray(0.3 * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _adapted(params, a, b):
  """The parameters of a layer, its kernel with a correction."""
  return params | {'kernel': LowRank(params['kernel'], _drawn(a, 1), _drawn(b, 2), jnp.float32(0.7))}


@pytest.mark.parametrize('name', LAYERS)
def test_numbers_are_those_of_the_merged_kernel(name):
  layer, x, a, b = LAYERS[name]
  x = _drawn(x)
  plain = jax.jit(layer.init)(jax.random.key(0), x)['params']
  params = _adapted(plain, a, b)
  whole = merged(params)
  assert whole['kernel'].shape == plain['kernel'].shape
  assert np.abs(whole['kernel'] - plain['kernel']).max() > 0.05

  def of_correction(kernel):
    return jnp.sum(jnp.sin(layer.apply({'params': params | {'kernel': kernel}}, x)))

  def of_sum(kernel):
    return jnp.sum(jnp.sin(layer.apply({'params': merged(params | {'kernel': kernel})}, x)))

  out = layer.apply({'params': whole}, x)
  np.testing.assert_allclose(layer.apply({'params': params}, x), out, rtol=1e-6, atol=1e-6 * np.abs(out).max() * 4)
  got, want = (jax.jit(jax.grad(function))(params['kernel']) for function in (of_correction, of_sum))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize('name', LAYERS)
def test_a_kernel_in_eight_bits_is_that_of_its_values_and_scales(name):
  layer, x, a, b = LAYERS[name]
  x = _drawn(x)
  plain = jax.jit(layer.init)(jax.random.key(0), x)['params']
  inputs = len(a) - 1
  small = quantized(plain['kernel'], layers=0, inputs=inputs)
  assert small.values.dtype == np.int8 and np.abs(small.values).max(axis=tuple(range(inputs))).min() == 127
  error = np.abs(dense(small, jnp.float32) - plain['kernel'])
  assert (error <= 0.501 * small.scale).all() and error.max() > 0
  whole = plain | {'kernel': dense(small, jnp.float32)}
  out = layer.apply({'params': whole}, x)
  np.testing.assert_allclose(layer.apply({'params': plain | {'kernel': small}}, x), out, rtol=1e-6, atol=1e-6)
  led, summed = _adapted(plain | {'kernel': small}, a, b), merged(_adapted(whole, a, b))
  out = layer.apply({'params': summed}, x)
  np.testing.assert_allclose(layer.apply({'params': led}, x), out, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(merged(led)['kernel'], summed['kernel'], rtol=1e-6, atol=1e-6)


def test_frozen_networks_in_eight_bits_keep_what_is_no_kernel():
  tree = {'blocks': {'in': {'kernel': _drawn((2, 3, 4)), 'bias': _drawn((2, 4))}}, 'table': {'kernel': _drawn((3, 4))}}
  known = {'net/blocks/in': Kernel((2, 3, 4), stacked=1, inputs=1, conv=False)}
  made = in_int8({'net': frozen(tree)}, known)['net']
  loaded = made.load()
  assert jax.tree.structure(made.shapes) == jax.tree.structure(loaded)
  jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f'{a} {b}'), made.shapes, loaded)
  assert loaded['blocks']['in']['kernel'].scale.shape == (2, 1, 4)
  np.testing.assert_array_equal(loaded['table']['kernel'], tree['table']['kernel'])


class Stack(nn.Module):
  """Three residual layers, scanned."""

  @nn.compact
  def __call__(self, x):
    def layer(_, x):
      return x + jnp.tanh(Linear(256, name='linear')(x)), None

    scanned = nn.scan(layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
    return scanned(self, x)[0]


@pytest.fixture(scope='module')
def stacked():
  """Parameters of `Stack` whose layers have ranks 4, 2 and 0, padded with zeros."""
  plain = jax.jit(Stack().init)(jax.random.key(0), jnp.ones((8, 256)))['params']['linear']
  ranks = (jnp.arange(4)[None] < jnp.array([4, 2, 0])[:, None]).astype(jnp.float32)
  a, b = _drawn((3, 256, 4), 1) * ranks[:, None], _drawn((3, 4, 256), 2)
  return plain | {'kernel': LowRank(plain['kernel'], a, b, jnp.array([0.5, 2.0, 1.0]))}


def _loss(params):
  return jnp.sum(jnp.square(Stack().apply({'params': {'linear': params}}, _drawn((8, 256)))))


def test_a_scanned_stack_takes_a_rank_for_each_layer(stacked):
  whole = merged(stacked)
  for i in range(3):
    kernel = stacked['kernel']
    one = merged(LowRank(kernel.base[i], kernel.a[i], kernel.b[i], kernel.scale[i]))
    np.testing.assert_allclose(whole['kernel'][i], one, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(whole['kernel'][2], stacked['kernel'].base[2])
  np.testing.assert_allclose(_loss(stacked), _loss(whole), rtol=1e-5)


def _of_pair(params, pair):
  a, b = pair
  return _loss(params | {'kernel': params['kernel'].replace(a=a, b=b)})


def _of_pair_merged(params, pair):
  a, b = pair
  return _loss(merged(params | {'kernel': params['kernel'].replace(a=a, b=b)}))


def _made(jaxpr, inner=True):
  """Shapes of what the equations of a program make, those of its inner programs too."""
  for equation in jaxpr.eqns:
    parts = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, 'jaxpr') or hasattr(p, 'eqns'))
    parts = [part for part in parts if hasattr(part, 'jaxpr') or hasattr(part, 'eqns')]
    yield from (variable.aval.shape for variable in equation.outvars)
    for part in parts:
      yield from _made(getattr(part, 'jaxpr', part))


def test_training_the_correction_makes_nothing_of_the_kernels_shape(stacked):
  """A slice of the stack and its reshaping are of that shape: as they are for the frozen kernels alone."""
  pair = stacked['kernel'].a, stacked['kernel'].b

  def count(function, *arguments):
    shapes = list(_made(jax.make_jaxpr(function)(*arguments).jaxpr))
    return sum(shape in ((256, 256), (3, 256, 256)) for shape in shapes)

  forward = count(_loss, stacked | {'kernel': stacked['kernel'].base})
  ours, theirs = (count(jax.grad(f, 1), stacked, pair) for f in (_of_pair, _of_pair_merged))
  assert ours <= forward + 1 < theirs, (forward, ours, theirs)  # one transposed base a layer on the way back

  def temporaries(function):
    program = jax.jit(jax.grad(function, 1)).lower(stacked, pair).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert temporaries(_of_pair) < 0.5 * temporaries(_of_pair_merged)


def test_a_correction_of_another_kernel_is_refused():
  params = _adapted(Linear(12).init(jax.random.key(0), jnp.ones((2, 8)))['params'], (8, RANK), (RANK, 12))
  with pytest.raises(ValueError, match=r'base of shape \(8, 12\); the layer wants \(8, 10\)'):
    Linear(10).apply({'params': params}, jnp.ones((2, 8)))


def test_the_product_of_a_linear_layer_can_be_another():
  seen = []

  def product(x, kernel, dimensions):
    seen.append((x.shape, kernel.shape))
    return jax.lax.dot_general(jnp.round(x), kernel, dimensions)

  layer = Linear((3, 2), dot_general=product)
  x = _drawn((4, 5, 8))
  params = Linear((3, 2)).init(jax.random.key(0), x)
  np.testing.assert_allclose(layer.apply(params, x), Linear((3, 2)).apply(params, jnp.round(x)), rtol=1e-6)
  assert seen == [((20, 8), (8, 3, 2))]


def test_networks_have_no_products_that_cannot_be_adapted():
  """Flax's own layers take no LowRank."""
  models = pathlib.Path(__file__).parents[1] / 'jaxgen' / 'models'
  found = {
    path.relative_to(models).as_posix(): re.findall(
      r'nn\.(?:Dense|DenseGeneral|Conv|ConvTranspose|Einsum)\(', path.read_text()
    )
    for path in models.rglob('*.py')
  }
  assert not {name: calls for name, calls in found.items() if calls}
