"""Weight maps: a batch's 'weight' multiplies the error of each image, float b, or of each pixel, float b h w 1.

Masked training is a map of 0 and 1; weights of images favour some over others. A map may be larger than the arrays that
are compared, as for latents: each then has the mean of its pixels' weights.

  squares   w e^2, for losses that are sums over pixels                                 (1)
  masked    sqrt(w) a and sqrt(w) b, for distances of whole images; weights of images   (2)
            multiply the distance instead
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxgen.processes.process import expand
from jaxgen.typing import Array, Batch, Float


def map_of(batch: Batch, name: str = 'weight') -> Array | None:
  """The weight map of a batch; one under another name than 'weight' has to be there."""
  if name != 'weight' and name not in batch:
    raise ValueError(f'weight_map names {name!r}, which the batch does not have; it has {sorted(batch)}')
  return batch.get(name)


def check_no_map(batch: Mapping[str, Any], objective: str) -> None:
  """Raises ValueError if a batch has weights, for an objective that would not use them.

  A GAN judges images as a whole, a contrastive loss compares pairs, a bound in bits holds for all of an image, and
  pairs that a teacher made are of no record: none of these has an error of a pixel to weigh.
  """
  if 'weight' in batch:
    raise ValueError(f"{objective} does not use weights, and the batch has the field 'weight'; leave it out")


def weighted(squares: Float[Array, 'b ...'], weight: Float[Array, 'b ...'] | None) -> Float[Array, 'b ...']:
  """Eq. 1."""
  return squares if weight is None else squares * _fitted(weight.astype(jnp.float32), squares)


def masked(
  a: Float[Array, 'b ...'], b: Float[Array, 'b ...'], weight: Float[Array, 'b ...'] | None
) -> tuple[Float[Array, 'b ...'], Float[Array, 'b ...'], Float[Array, ' b'] | float]:
  """Eq. 2: two images to compare, and the factor of their distance."""
  if weight is None:
    return a, b, 1.0
  if weight.ndim != a.ndim:
    return a, b, weight.astype(jnp.float32)
  root = jnp.sqrt(_fitted(weight.astype(jnp.float32), a))
  return root * a, root * b, 1.0


def _fitted(weight: Float[Array, 'b ...'], like: Float[Array, 'b ...']) -> Float[Array, 'b ...']:
  """A weight of images, or of pixels at the resolution of `like`."""
  if weight.ndim != like.ndim:
    return expand(weight, like)
  if weight.shape[1:-1] == like.shape[1:-1]:
    return weight
  (b, h, w, c), (_, small_h, small_w, _) = weight.shape, like.shape
  if h % small_h or w % small_w:
    raise ValueError(f'a weight map of {h}x{w} for a network that sees {small_h}x{small_w}; use a multiple of that')
  return weight.reshape(b, small_h, h // small_h, small_w, w // small_w, c).mean((2, 4))
