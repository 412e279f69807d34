"""Images too large to encode or decode at once, tile by tile.

Tiles overlap; in an overlap of n pixels the weight of the later tile rises from 1 / (n + 1) to n / (n + 1), and the
weights at each place sum to 1. A scan goes over the tiles, so memory holds the activations of one. A network whose
normalisation sees a whole image, as these do, changes a tile slightly: the blend hides it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models import latents
from jaxgen.typing import Array, Float

_OVERLAP = 0.25  # share of a tile that overlaps by default


def decode_tiled(
  net: nn.Module, frozen: Any, z: Float[Array, 'b h w z'], *, tile: int, overlap: int | None = None
) -> Float[Array, 'b h2 w2 c']:
  """`latents.decode`, in tiles of `tile` latents a side that overlap by `overlap`."""
  factor: int = net.factor  # pyrefly: ignore[missing-attribute]
  return _tiled(lambda part: latents.decode(net, frozen, part), z, tile=tile, overlap=overlap, up=factor, down=1)


def encode_tiled(
  net: nn.Module, frozen: Any, images: Float[Array, 'b h w c'], *, tile: int, overlap: int | None = None
) -> tuple[Float[Array, 'b h2 w2 z'], Float[Array, 'b h2 w2 z']]:
  """`latents.posterior`, in tiles of `tile` latents a side that overlap by `overlap`."""
  factor: int = net.factor  # pyrefly: ignore[missing-attribute]

  def encode(part: Array) -> Array:
    return jnp.concatenate(latents.posterior(net, frozen, part), axis=-1)

  both = _tiled(encode, images, tile=tile, overlap=overlap, up=1, down=factor)
  mean, std = jnp.split(both, 2, axis=-1)
  return mean, std


def _tiled(run: Callable[[Array], Array], x: Array, *, tile: int, overlap: int | None, up: int, down: int) -> Array:
  """`run` on tiles of x; one latent is `down` places of x and `up` places of the result."""
  overlap = int(tile * _OVERLAP) if overlap is None else overlap
  if not 0 <= overlap < tile:
    raise ValueError(f'tiles of {tile} cannot overlap by {overlap}; wanted 0 to {tile - 1}')
  sizes = [size // down for size in x.shape[1:3]]
  if all(size <= tile for size in sizes):
    return run(x)
  starts = [_starts(size, min(tile, size), overlap) for size in sizes]
  sides = [min(tile, size) for size in sizes]
  places = np.array([(row, column) for row in starts[0] for column in starts[1]], np.int32)
  weights = [_weights(size, side, begin) for size, side, begin in zip(sizes, sides, starts, strict=True)]
  rows, columns = (np.repeat(each, up, axis=1) if up > 1 else each for each in weights)
  shape = jax.eval_shape(run, x[:, : sides[0] * down, : sides[1] * down]).shape
  whole = jnp.zeros((shape[0], sizes[0] * up, sizes[1] * up, shape[3]))

  def add(total: Array, inputs: Any) -> tuple[Array, None]:
    place, row, column = inputs
    part = jax.lax.dynamic_slice(
      x, (0, place[0] * down, place[1] * down, 0), (len(x), sides[0] * down, sides[1] * down, x.shape[3])
    )
    made = run(part) * row.reshape(1, -1, 1, 1) * column.reshape(1, 1, -1, 1)
    corner = (0, place[0] * up, place[1] * up, 0)
    before = jax.lax.dynamic_slice(total, corner, made.shape)
    return jax.lax.dynamic_update_slice(total, before + made, corner), None

  of_rows = np.repeat(rows, len(starts[1]), axis=0)
  of_columns = np.tile(columns, (len(starts[0]), 1))
  whole, _ = jax.lax.scan(add, whole, (jnp.asarray(places), jnp.asarray(of_rows), jnp.asarray(of_columns)))
  return whole


def _starts(size: int, side: int, overlap: int) -> list[int]:
  """Where tiles begin: the last one ends where the image does."""
  return [*range(0, size - side, side - overlap), size - side] if size > side else [0]


def _weights(size: int, side: int, starts: list[int]) -> np.ndarray:
  """For each tile the weight of each of its places along one axis; at each place of the image they sum to 1."""
  made = np.zeros((len(starts), size))
  for i, start in enumerate(starts):
    ramp = np.ones(side)
    if i:
      n = starts[i - 1] + side - start
      ramp[:n] = np.arange(1, n + 1) / (n + 1)
    if i + 1 < len(starts):
      n = start + side - starts[i + 1]
      ramp[side - n :] *= np.arange(n, 0, -1) / (n + 1)
    made[i, start : start + side] = ramp
  made /= made.sum(axis=0)
  return np.stack([made[i, start : start + side] for i, start in enumerate(starts)]).astype(np.float32)
