"""Interpolation between the images of two noises.

  (1)  slerp (Shoemake 1985):  sin((1 - w) o)/sin(o) a + sin(w o)/sin(o) b,   o the angle between a and b

A straight mix of two noises has too little variance; Eq. 1 keeps their length.
"""

import jax.numpy as jnp

from jaxgen.objectives.base import Denoising, InterpolateFn, sample_from, split_keys
from jaxgen.processes.process import expand, image_noise
from jaxgen.typing import Array, Cond, Float, Key


def interpolated(d: Denoising, first: Key[Array, ''], last: Key[Array, '']) -> InterpolateFn:
  """`(params, frozen, cond, keys, *, weight) -> images` between the images of two keys.

  `weight` is float b, 0 at the first image and 1 at the last. A sampler's own noise is that of `first`.
  """

  def sample(
    params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b'], *, weight: Float[Array, ' b']
  ) -> Float[Array, 'b h w c']:
    ends = [jnp.broadcast_to(key, keys.shape) for key in (first, last)]
    a, b = (image_noise(split_keys(end)[0], d.shape) for end in ends)
    return sample_from(d, params, frozen, cond, slerp(a, b, weight), ends[0])

  return sample


def slerp(
  a: Float[Array, 'b ...'], b: Float[Array, 'b ...'], weight: float | Float[Array, ' b']
) -> Float[Array, 'b ...']:
  """From `a` (weight 0) to `b` (weight 1), image by image; straight where they point the same way.  # Eq. 1"""
  axes = tuple(range(1, a.ndim))
  length = lambda x: jnp.sqrt((x * x).sum(axes))  # noqa: E731
  cosine = (a * b).sum(axes) / jnp.maximum(length(a) * length(b), 1e-12)
  angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
  weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), angle.shape)
  straight = jnp.sin(angle) < 1e-4
  sine = jnp.where(straight, 1.0, jnp.sin(angle))
  of_a = jnp.where(straight, 1 - weight, jnp.sin((1 - weight) * angle) / sine)
  of_b = jnp.where(straight, weight, jnp.sin(weight * angle) / sine)
  return expand(of_a, a) * a + expand(of_b, b) * b
