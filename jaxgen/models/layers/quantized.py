"""Products in eight bits, for `Linear`: int8 with a scale for each row and column, FP8 with one for each array.

With x of b i and W of i o, and a scale that brings the largest value to the format's,

  (1)  int8   x W = s_x s_W (round(x / s_x) round(W / s_W)),   s = max |.| / 127, of each row of x, each column of W
  (2)  FP8    x W = s_x s_W (e4m3(x / s_x) e4m3(W / s_W)),     s = max |.| / 448, of the whole array
  (3)  dx = g W^T,  dW = x^T g                                  of the arrays as they were, or, of FP8, with g in e5m2

Scales are those of the arrays in sight, without a history (Micikevicius et al. 2022, "FP8 Formats for Deep Learning",
have one). Int8 in the forward pass alone is AQT's default. Where the hardware multiplies no FP8, XLA converts first:
the numbers are the same, and it is slower.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.typing import Array

_MATRICES = (((1,), (0,)), ((), ()))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def int8_dot_general(x: Array, w: Array, dimension_numbers: Any) -> Array:
  """Eq. 1, with the gradient of Eq. 3; the arguments of `jax.lax.dot_general` for b i and i *o."""
  _check(dimension_numbers)
  matrix = w.reshape(len(w), -1)
  sx, sw = _scale(x, 127, 1), _scale(matrix, 127, 0)
  a, b = (jnp.clip(jnp.round(v / s), -127, 127).astype(jnp.int8) for v, s in ((x, sx), (matrix, sw)))
  y = lax.dot_general(a, b, _MATRICES, preferred_element_type=jnp.int32).astype(jnp.float32)
  return (y * sx * sw).astype(x.dtype).reshape(len(x), *w.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def fp8_dot_general(x: Array, w: Array, dimension_numbers: Any) -> Array:
  """Eq. 2, with the gradient of Eq. 3 in FP8; the arguments of `jax.lax.dot_general` for b i and i *o."""
  _check(dimension_numbers)
  y = _fp8(x, w.reshape(len(w), -1), jnp.float8_e4m3fn)
  return y.astype(x.dtype).reshape(len(x), *w.shape[1:])


def _saved(product: Any, x: Array, w: Array, dimension_numbers: Any) -> tuple[Array, tuple[Array, Array]]:
  return product(x, w, dimension_numbers), (x, w)


def _plain_gradient(dimension_numbers: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, w = saved
  g, matrix = g.reshape(len(g), -1), w.reshape(len(w), -1)
  return (g @ matrix.T).astype(x.dtype), (x.T @ g).astype(w.dtype).reshape(w.shape)


def _fp8_gradient(dimension_numbers: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, w = saved
  g, matrix = g.reshape(len(g), -1), w.reshape(len(w), -1)
  dx = _fp8(g, matrix.T, jnp.float8_e5m2)
  dw = _fp8(g.T, x, jnp.float8_e5m2).T
  return dx.astype(x.dtype), dw.astype(w.dtype).reshape(w.shape)


int8_dot_general.defvjp(functools.partial(_saved, int8_dot_general), _plain_gradient)
fp8_dot_general.defvjp(functools.partial(_saved, fp8_dot_general), _fp8_gradient)


def _fp8(a: Array, b: Array, dtype: Any) -> Array:
  """a b with a in `dtype` and b in e4m3; float32."""
  values = []
  for array, kind in ((a, dtype), (b, jnp.float8_e4m3fn)):
    scale = _scale(array, float(jnp.finfo(kind).max), None)
    values.append(((array.astype(jnp.float32) / scale).astype(kind), scale))
  (a, sa), (b, sb) = values
  return lax.dot_general(a, b, _MATRICES, preferred_element_type=jnp.float32) * sa * sb


def _scale(array: Array, largest: float, axis: int | None) -> Array:
  most = jnp.max(jnp.abs(array.astype(jnp.float32)), axis=axis, keepdims=axis is not None)
  return jnp.where(most > 0, most / largest, 1.0)


def _check(dimension_numbers: Any) -> None:
  if tuple(map(tuple, dimension_numbers[0])) != ((1,), (0,)) or any(map(len, dimension_numbers[1])):
    raise ValueError(f'products in eight bits are of b i and i *o, as Linear has them, not {dimension_numbers}')
