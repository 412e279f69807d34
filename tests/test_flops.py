"""FLOPs counted from a jaxpr, against what can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxgen import flops
from jaxgen.models import unet
from jaxgen.models.dit import SIZES, dit
from jaxgen.models.layers import remat
from jaxgen.models.layers.convolution import convolve

_matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
_product = 2 * 8**3


def _scanned(x):
  return lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]


def _branches(x):
  return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)


@pytest.mark.parametrize(
  ('function', 'products'),
  [
    (lambda x: x @ x + x, 1),
    (jax.jit(lambda x: x @ x), 1),
    (jax.checkpoint(lambda x: x @ x), 1),
    (_scanned, 5),
    (lambda x: lax.scan(lambda x, _: (_scanned(x), None), x, length=3)[0], 15),
    (_branches, 2),
    (lambda x: lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x - 1, x), 0),
    (jax.vmap(lambda row: row @ row), 1 / 8),
    (lambda x: x[:, :1] @ x[:1], 0),
    (lambda x: (x @ x, x)[1], 0),  # which nothing needs
    (lambda x: jax.jit(lambda x: (x @ x @ x, x @ x))(x)[1], 1),
  ],
)
def test_products_are_counted_as_often_as_they_run(function, products):
  assert flops.count(function, _matrix) == products * _product


def test_a_product_in_a_while_loop_is_refused():
  with pytest.raises(ValueError, match='while loop has products'):
    flops.count(lambda x: lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), _matrix)


@pytest.mark.parametrize(
  ('options', 'operations'),
  [
    ({'window_strides': (1, 1)}, 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)),
    ({'window_strides': (2, 2)}, 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)),
    ({'window_strides': (1, 1), 'lhs_dilation': (2, 2)}, 2 * (2 * 15 * 15 * 6) * (3 * 3 * 4) // 4),
  ],
)
def test_convolutions(options, operations):
  layout = ('NHWC', 'HWIO', 'NHWC')

  def convolve(x, kernel):
    return lax.conv_general_dilated(x, kernel, padding=[(1, 1), (1, 1)], dimension_numbers=layout, **options)

  x, kernel = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)
  assert flops.count(convolve, x, kernel) == operations


@pytest.mark.parametrize('policy', ['none', 'dots', 'full'])
def test_gradient_of_dit_is_the_closed_formula_whatever_is_rematerialised(policy):
  b, l, d, depth, classes = 4, 64, 384, 12, 10
  net = dit('S/4', num_classes=classes, learn_sigma=True, remat=remat.policy(policy))
  x, t = jax.ShapeDtypeStruct((b, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.float32)
  cond = {'label': jax.ShapeDtypeStruct((b,), jnp.int32)}
  params = jax.eval_shape(net.init, jax.random.key(0), x, t, cond)

  def loss(params, x, t, cond):
    return net.apply(params, x, t, cond).sum()

  block = 2 * b * l * (12 * d * d) + 4 * b * l * l * d + 2 * b * (6 * d * d)  # linear layers, attention, modulation
  first = 2 * b * l * d * 64 + 2 * b * 256 * d  # of data: no gradient by their input
  rest = 2 * b * d * d + 2 * b * d * 2 * d + 2 * b * l * d * 128
  assert flops.count(loss, params, x, t, cond) == depth * block + first + rest
  assert flops.count_gradient(loss, params, x, t, cond) == 3 * (depth * block + rest) + 2 * first


@pytest.mark.parametrize('penalty', [False, True])
def test_gradient_of_a_convolution_with_its_own_gradients(penalty):
  x, kernel = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)

  def loss(kernels, x):
    def score(x):
      return (convolve(jnp.tanh(convolve(x, kernels[0], pad=1)), kernels[1], pad=1) ** 2).sum()

    return (jax.grad(score)(x) ** 2).sum() if penalty else score(x)

  products = flops.count(jax.value_and_grad(loss), (kernel, kernel), x)
  assert flops.count_gradient(loss, (kernel, kernel), x) == products
  assert penalty or products == 5 * 2 * (2 * 8 * 8 * 4) * (3 * 3 * 4)  # forward two, of kernels two, of the middle one


@pytest.mark.parametrize('size', SIZES)
def test_forward_of_every_size_of_dit_is_the_closed_formula(size):
  depth, d, _ = SIZES[size]
  b, l = 2, 256
  net = dit(f'{size}/2', num_classes=1000, learn_sigma=True, dtype=jnp.bfloat16, remat=remat.policy('full'))
  x, t = jax.ShapeDtypeStruct((b, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.float32)
  cond = {'label': jax.ShapeDtypeStruct((b,), jnp.int32)}
  params = jax.eval_shape(net.init, jax.random.key(0), x, t, cond)
  formula = b * depth * (l * 24 * d * d + 4 * l * l * d + 12 * d * d)  # the rest is within the 2%
  assert flops.count(net.apply, params, x, t, cond) == pytest.approx(formula, rel=0.02)


def test_forward_of_a_unet_is_the_closed_formula():
  b, side, channels = 2, 32, 3
  net = unet.iddpm('cifar10')
  x, t = jax.ShapeDtypeStruct((b, side, side, channels), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.float32)
  params = jax.eval_shape(net.init, jax.random.key(0), x, t, {})
  size = unet.IDDPM_SIZES['cifar10']
  widths = [int(m * size.width) for m in size.multipliers]

  def conv(side, c, o):
    return 2 * 9 * side**2 * c * o

  def block(side, c, o):
    modulation = 2 * 4 * size.width * 2 * o
    return conv(side, c, o) + conv(side, o, o) + modulation + (2 * side**2 * c * o if c != o else 0)

  def attend(side, c):
    return 8 * side**2 * c * c + 4 * side**4 * c

  total, kept, c = conv(side, channels, widths[0]), [widths[0]], widths[0]
  for level, o in enumerate(widths):
    for _ in range(size.blocks):
      total += block(side, c, o) + (attend(side, o) if level in size.attention else 0)
      c = o
      kept.append(c)
    if level + 1 < len(widths):
      side //= 2
      total += conv(side, c, c)
      kept.append(c)
  total += 2 * block(side, c, c) + attend(side, c)
  for level, o in reversed(list(enumerate(widths))):
    for _ in range(size.blocks + 1):
      total += block(side, c + kept.pop(), o) + (attend(side, o) if level in size.attention else 0)
      c = o
    if level:
      side *= 2
      total += conv(side, c, c)
  total += conv(side, c, 2 * channels)
  assert not kept
  assert flops.count(net.apply, params, x, t, {}) == pytest.approx(b * total, rel=0.02)
