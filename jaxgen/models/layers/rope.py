"""Rotary positions on a grid of tokens.

  (q_i, q_{i + h/2}) <- rotation by the angle a_i                                        (1)
  a_i = row w_i for the first half of the angles, column w_i for the second              (2)
  w_i = 10000^(-i / m),  i = 0 ... m - 1,  m = h / 4, a quarter of a head                (3)

Flux turns neighbouring features, and has any number of axes, each with a share of the head:

  (q_2i, q_{2i + 1}) <- rotation by the angle a_i                                        (4)
  a = [place_j w_i for axis j, i = 0 ... m_j / 2 - 1],  w_i = 10000^(-2 i / m_j)         (5)

With keys rotated alike, q . k depends on where they are only by the differences of rows and of columns.
Su et al. 2021, "RoFormer", on two axes.
"""

import jax.numpy as jnp
import numpy as np

from jaxgen.typing import Array, Float

Angles = Float[Array, 'l r'] | Float[Array, 'b l r']  # one for all images, or one for each


def angles_2d(rows: int, columns: int, features: int) -> np.ndarray:
  """Eqs. 2 and 3 for a grid in row-major order, radians, float32 [rows * columns, features / 2].

  Args:
    rows, columns: size of the grid.
    features: size of a head.
  """
  if features % 4:
    raise ValueError(f'2-D rotary positions need heads of a size divisible by 4, got {features}')
  quarter = features // 4
  frequencies = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
  places = np.meshgrid(np.arange(rows), np.arange(columns), indexing='ij')
  return np.concatenate([place.reshape(-1, 1) * frequencies for place in places], axis=1).astype(np.float32)


def angles_of(places: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
  """Eq. 5, radians, float32 [l, h / 2].

  Args:
    places: coordinates of each token, [l, axes].
    sizes: features of a head for each axis, even numbers.
  """
  angles = []
  for place, size in zip(places.T, sizes, strict=True):
    frequencies = 10000.0 ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angles.append(place.reshape(-1, 1) * frequencies)
  return np.concatenate(angles, axis=1).astype(np.float32)


def rotate(x: Float[Array, 'b l n h'], angles: Angles) -> Float[Array, 'b l n h']:
  """Eq. 1, in float32, of queries or of keys; a token at angle 0 stays as it is."""
  angles = angles if angles.ndim == 3 else angles[None]
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # b l 1 r
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
  return turned.astype(x.dtype)


def rotate_pairs(x: Float[Array, 'b l n h'], angles: Angles | Float[np.ndarray, 'l r']) -> Float[Array, 'b l n h']:
  """Eq. 4, in float32, of queries or of keys; a token at angle 0 stays as it is."""
  angles = angles if angles.ndim == 3 else angles[None]
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # b l 1 r
  first, second = jnp.moveaxis(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2), -1, 0)
  turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
  return turned.reshape(x.shape).astype(x.dtype)
