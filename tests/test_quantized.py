"""Products in eight bits: exact where the values are, near elsewhere, and a network that trains with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.layers.linear import Linear, products
from jaxgen.models.layers.quantized import fp8_dot_general, int8_dot_general
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.eight_bits import multiplied_by

MATRICES = (((1,), (0,)), ((), ()))
X, W = jax.random.normal(jax.random.key(0), (6, 32)), jax.random.normal(jax.random.key(1), (32, 2, 4))


def test_int8_is_the_rounded_product():
  got = jax.jit(lambda x, w: int8_dot_general(x, w, MATRICES))(X, W)
  x, w = np.asarray(X, np.float64), np.asarray(W, np.float64).reshape(32, -1)
  sx, sw = np.abs(x).max(1, keepdims=True) / 127, np.abs(w).max(0, keepdims=True) / 127
  want = (np.round(x / sx) @ np.round(w / sw)) * sx * sw
  np.testing.assert_allclose(got, want.reshape(6, 2, 4), atol=0.02)  # values between two steps may round either way
  np.testing.assert_allclose(got, (x @ w).reshape(6, 2, 4), atol=0.25)
  whole = jnp.asarray([[127.0, -3.0]]), jnp.asarray([[127.0], [5.0]])
  np.testing.assert_allclose(int8_dot_general(*whole, MATRICES), [[127 * 127 - 15]], rtol=1e-6)


@pytest.mark.parametrize(('product', 'error'), [(int8_dot_general, 0.02), (fp8_dot_general, 0.08)])
def test_values_and_gradients_are_near_those_of_float32(product, error):
  weight = jax.random.normal(jax.random.key(2), (6, 2, 4))

  @jax.jit
  def both(x, w):
    return [
      (f(x, w, MATRICES), jax.grad(lambda x, w, f=f: jnp.sum(weight * f(x, w, MATRICES)), (0, 1))(x, w))
      for f in (product, jax.lax.dot_general)
    ]

  got, want = both(X, W)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.linalg.norm(a - b) < error * np.linalg.norm(b)
  with pytest.raises(ValueError, match='are of b i and i'):
    product(X, W, (((0,), (0,)), ((), ())))


def test_all_products_of_an_objective_are_in_eight_bits_and_none_outside():
  net = Linear(3)
  params = {'net': net.init(jax.random.key(0), X)['params']}
  loss = lambda params, state, frozen, batch, key: (jnp.sum(net.apply({'params': params['net']}, X)), Aux())  # noqa: E731
  objective = Objective(lambda key, frozen, batch: {'params': params}, (Phase('a', 'net', loss),), lambda *_: X)

  def of(objective):
    return jax.make_jaxpr(lambda p: objective.phases[0].loss(p, None, {}, {}, jax.random.key(0))[0])(params)

  assert 'i8[' in str(of(multiplied_by(objective, int8_dot_general)))
  assert 'i8[' not in str(of(objective))
  with products(fp8_dot_general):
    assert 'f8_e4m3fn' in str(of(objective))
