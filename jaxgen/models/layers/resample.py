"""Images of half and of twice the side, without parameters."""

import jax.numpy as jnp

from jaxgen.typing import Array, Float


def halve(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """The mean of each 2x2 square; the sides are even."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def double(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Each pixel as a 2x2 square (nearest neighbour)."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
