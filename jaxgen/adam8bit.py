"""Adam whose averages take eight bits a number: a quarter of its memory (Dettmers et al. 2022).

  m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  u = m_hat / (sqrt(v_hat) + eps)                   (1)
  code(x) = round(levels (1 + log2(|x| / max) / octaves)),  max over the last axis                       (2)

m has 127 levels over 12 octaves with a sign, v 254 levels over 24. Rounding is random, up as often as the rest is
large, because a step of b2 = 0.999 moves v by less than a level. Differs from Dettmers et al., whose blocks cut across
rows: a maximum for each row leaves a sharded array where it is. Small arrays, such as biases, keep float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.typing import Array, Key

_SMALL = 4096  # values of an array that keeps float32
_OF_M, _OF_V = (127, 12), (254, 24)  # levels and octaves


class Codes(NamedTuple):
  """An array in eight bits.

  Attributes:
    codes: Eq. 2, 0 for zero; int8 with the sign, or uint8.
    largest: max of each row.
  """

  codes: Any
  largest: Any


class State(NamedTuple):
  """The averages, and how many updates they have seen."""

  count: Any
  m: Any
  v: Any


def adam_8bit(
  rate: optax.ScalarOrSchedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, seed: int = 0
) -> optax.GradientTransformation:
  """`optax.adam` with averages of eight bits.

  Args:
    rate: learning rate, or its schedule.
    b1, b2, eps: as in Eq. 1.
    seed: seed of the rounding.
  """

  def init(params: Any) -> State:
    def zero(leaf: Array, signed: bool) -> Any:
      if leaf.size < _SMALL or leaf.ndim < 2:
        return jnp.zeros_like(leaf, dtype=jnp.float32)
      return Codes(jnp.zeros(leaf.shape, jnp.int8 if signed else jnp.uint8), jnp.zeros((*leaf.shape[:-1], 1)))

    zeros = [jax.tree.map(lambda leaf, signed=signed: zero(leaf, signed), params) for signed in (True, False)]
    return State(jnp.zeros((), jnp.int32), *zeros)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    count = state.count + 1
    key = jax.random.fold_in(jax.random.key(seed), count)
    leaves, treedef = jax.tree.flatten(updates)
    made = [
      _update(g.astype(jnp.float32), m, v, count, jax.random.fold_in(key, i), b1, b2, eps)
      for i, (g, m, v) in enumerate(
        zip(leaves, treedef.flatten_up_to(state.m), treedef.flatten_up_to(state.v), strict=True)
      )
    ]
    u, m, v = (treedef.unflatten(part) for part in zip(*made, strict=True))
    return u, State(count, m, v)

  return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(rate))


def _update(
  g: Array, m: Any, v: Any, count: Array, key: Key[Array, ''], b1: float, b2: float, eps: float
) -> tuple[Array, Any, Any]:
  """Eq. 1 of one array."""
  new_m = b1 * decoded(m, *_OF_M) + (1 - b1) * g
  new_v = b2 * decoded(v, *_OF_V) + (1 - b2) * g**2
  step = count.astype(jnp.float32)
  u = new_m / (1 - b1**step) / (jnp.sqrt(new_v / (1 - b2**step)) + eps)
  if not isinstance(m, Codes):
    return u, new_m, new_v
  keys = jax.random.split(key)
  return u, encoded(new_m, *_OF_M, keys[0], signed=True), encoded(new_v, *_OF_V, keys[1], signed=False)


def encoded(x: Array, levels: int, octaves: int, key: Key[Array, ''], *, signed: bool) -> Codes:
  """Eq. 2. Without a sign the least code of what is not zero is 1, so that nothing is divided by a v of zero."""
  largest = jnp.abs(x).max(axis=-1, keepdims=True)
  share = jnp.abs(x) / jnp.maximum(largest, 1e-38)
  level = levels * (1 + jnp.log2(jnp.maximum(share, 1e-38)) / octaves)
  code = jnp.clip(jnp.floor(level + jax.random.uniform(key, x.shape)), 0 if signed else 1, levels)
  code = jnp.where(share > 0, code, 0)
  return Codes((jnp.sign(x) * code).astype(jnp.int8) if signed else code.astype(jnp.uint8), largest)


def decoded(x: Any, levels: int, octaves: int) -> Array:
  """The array of Eq. 2, or one that kept float32."""
  if not isinstance(x, Codes):
    return x
  code = x.codes.astype(jnp.float32)
  size = x.largest * 2.0 ** (octaves * (jnp.abs(code) / levels - 1))
  return jnp.where(code == 0, 0.0, jnp.sign(code) * size)
