"""Convolutions of stride 1, 2 and 1/2: the same numbers as XLA's own, with gradients that are plain convolutions."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxgen.models.layers.convolution import convolve, convolve_down, convolve_transposed


def _of_xla(x, kernel, *, stride=1, up=1, pad=0, groups=1):
  if up > 1:
    kernel, pad = kernel[::-1, ::-1], kernel.shape[0] - 1
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((pad, pad), (pad, pad)),
    lhs_dilation=(up, up),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


CASES = {
  'same': (partial(convolve, pad=1), partial(_of_xla, pad=1), (2, 6, 8, 3), (3, 3, 3, 4)),
  'valid': (convolve, _of_xla, (2, 4, 4, 3), (4, 4, 3, 4)),
  'in groups': (partial(convolve, pad=1, groups=2), partial(_of_xla, pad=1, groups=2), (2, 4, 6, 6), (3, 3, 3, 8)),
  'pointwise': (convolve, _of_xla, (2, 4, 6, 3), (1, 1, 3, 4)),
  'down, odd': (convolve_down, partial(_of_xla, stride=2), (2, 7, 9, 3), (3, 3, 3, 4)),
  'down, even': (convolve_down, partial(_of_xla, stride=2), (2, 8, 6, 3), (3, 3, 3, 4)),
  'down by 4x4': (convolve_down, partial(_of_xla, stride=2), (2, 8, 6, 3), (4, 4, 3, 4)),
  'up': (convolve_transposed, partial(_of_xla, up=2), (2, 4, 5, 3), (3, 3, 3, 4)),
  'up by 4x4': (convolve_transposed, partial(_of_xla, up=2), (2, 4, 5, 3), (4, 4, 3, 4)),
}


def _once(f, x, kernel):
  return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel))), (0, 1))(x, kernel)


def _twice(f, x, kernel):
  """As R1 has it: the gradients of the squared gradient of the image."""
  penalty = lambda x, kernel: jnp.sum(_once(f, x, kernel)[0] ** 2)  # noqa: E731
  return jax.grad(penalty, (0, 1))(x, kernel)


@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_are_xlas(name):
  ours, theirs, image, kernel = CASES[name]
  draw = np.random.default_rng(0)
  x, k = (jnp.asarray(0.3 * draw.standard_normal(shape), jnp.float32) for shape in (image, kernel))

  @jax.jit
  def all_of(x, k):
    return [[f(x, k), _once(f, x, k), _twice(f, x, k)] for f in (ours, theirs)]

  found, wanted = all_of(x, k)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)


def test_groups_elsewhere_than_on_a_cpu_are_one_convolution_with_the_same_gradients(monkeypatch):
  ours, theirs, image, kernel = CASES['in groups']
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (image, kernel)]
  traced = jax.jit(partial(_once, ours)).trace(*shapes)
  numbers = [traced.lower(lowering_platforms=(p,)).as_text().count('stablehlo.convolution') for p in ('tpu', 'cpu')]
  assert numbers == [3, 4]  # y, dx and dk, which a CPU takes in two groups

  monkeypatch.setattr(lax, 'platform_dependent', lambda *args, cpu, default: default(*args))
  draw = np.random.default_rng(0)
  x, k = (jnp.asarray(0.3 * draw.standard_normal(shape), jnp.float32) for shape in (image, kernel))
  found, wanted = (jax.jit(lambda x, k, f=f: (_once(f, x, k), _twice(f, x, k)))(x, k) for f in (ours, theirs))
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)


def _strange(f, image, kernel):
  """Convolutions of a lazy penalty's branch that XLA's CPU backend would run element by element."""

  def lazily(x, k):
    return lax.cond(x[0, 0, 0, 0] > 0, lambda: _twice(f, x, k), lambda: (x, k))

  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (image, kernel)]
  lines = [line for line in jax.jit(lazily).lower(*shapes).compile().as_text().splitlines() if 'convolution(' in line]
  plain = re.compile(r'window={size=\d+x\d+( pad=[\d_x]+)?}, dim_labels=b01f_01io->b01f[,\s]')
  return [line for line in lines if not plain.search(line)], lines


@pytest.mark.parametrize('name', [name for name in CASES if name != 'pointwise'])
def test_no_gradient_is_of_a_form_that_is_slow_in_a_branch(name):
  ours, theirs, image, kernel = CASES[name]
  image, kernel = (4, *(4 * side for side in image[1:3]), 16), (*kernel[:2], 16 * kernel[2] // image[3], 16)
  strange, lines = _strange(ours, image, kernel)
  assert lines and not strange
  assert _strange(theirs, image, kernel)[0]
