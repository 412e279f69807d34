"""Adam in eight bits: its memory, its codes, and that it arrives where Adam does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.adam8bit import adam_8bit, decoded, encoded


def test_codes_are_near_and_not_biased():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((4, 64)) * 10.0 ** rng.uniform(-2, 2, (4, 1)), jnp.float32)
  keys = jax.random.split(jax.random.key(0), 400)
  again = jax.jit(jax.vmap(lambda key: decoded(encoded(x, 127, 12, key, signed=True), 127, 12)))(keys)
  kept = np.abs(x) > 2.0**-11 * np.abs(x).max(axis=1, keepdims=True)
  share = np.where(kept[None], again / x[None], 1)
  assert share.min() > 0.92 and share.max() < 1.08
  np.testing.assert_allclose(share.mean(axis=0), 1, atol=0.01)
  tiny = encoded(jnp.array([[1.0, 1e-30, 0.0]]), 254, 24, keys[0], signed=False)
  np.testing.assert_array_equal(tiny.codes, [[254, 1, 0]])


def test_it_arrives_where_adam_does_in_a_quarter_of_the_memory():
  rng = np.random.default_rng(1)
  scale = jnp.asarray(10.0 ** rng.uniform(-2, 1, (64, 64)), jnp.float32)
  goal = {'w': jnp.asarray(rng.standard_normal((64, 64)), jnp.float32), 'b': jnp.ones(3)}

  def loss(params):
    return jnp.sum(scale * (params['w'] - goal['w']) ** 2) + jnp.sum((params['b'] - goal['b']) ** 2)

  def run(optimizer):
    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.zeros_like, goal)
    (params, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=300)
    return loss(params), state

  ours, theirs = (jax.jit(run, static_argnums=0)(make(2e-2)) for make in (adam_8bit, optax.adam))
  assert loss(jax.tree.map(jnp.zeros_like, goal)) > 1000 * ours[0] and ours[0] < 3 * theirs[0] + 0.1
  size = [sum(leaf.nbytes for leaf in jax.tree.leaves(state)) for _, state in (ours, theirs)]
  assert size[0] < 0.27 * size[1]
