"""Images of other sides, without parameters."""

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


def space_to_depth(x: Float[Array, 'b h w c'], side: int) -> Float[Array, 'b h2 w2 d']:
  """Each square of side^2 pixels as the channels of one; pixels in row-major order, channels last."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // side, w // side, side * side * c)


def depth_to_space(x: Float[Array, 'b h w d'], side: int) -> Float[Array, 'b h2 w2 c']:
  """The inverse of `space_to_depth`."""
  b, h, w, d = x.shape
  x = x.reshape(b, h, w, side, side, d // side**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * side, w * side, d // side**2)


def halve_smooth(x: Float[Array, 'b h w c'], *, padding: int = 1) -> Float[Array, 'b h2 w2 c']:
  """Every second pixel of x under the taps (1, 3, 3, 1) / 8 in both directions; zeros outside, `padding` of them."""
  x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  for axis in (1, 2):
    a, b, c, d = (_every_second(x, axis, start) for start in range(4))
    x = (a + d + 3 * (b + c)) / 8
  return x


def double_smooth(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Between each pixel and its neighbours, 3 to 1, in both directions; zeros outside."""
  for axis in (1, 2):
    zero = jnp.zeros_like(jnp.take(x, jnp.array([0]), axis))
    count = x.shape[axis]
    wide = jnp.concatenate([zero, x, zero], axis)
    before = jnp.take(wide, jnp.arange(count), axis)
    after = jnp.take(wide, jnp.arange(2, count + 2), axis)
    both = jnp.stack([3 * x + before, 3 * x + after], axis + 1) / 4
    x = both.reshape(*x.shape[:axis], 2 * count, *x.shape[axis + 1 :])
  return x


def _every_second(x: Array, axis: int, start: int) -> Array:
  """Pixels start, start + 2, ... along an axis, as many as four taps leave."""
  count = (x.shape[axis] - 2) // 2
  return jnp.take(x, start + 2 * jnp.arange(count), axis)
