"""Perceptual path length: how far images move, as people see it, where latents move a little.

  (1)  l = E [ d(G(p(t)), G(p(t + eps))) / eps^2 ],   t ~ U(0, 1) or t = 0

p goes from one latent to another, straight in W and on the great circle in Z; d is a perceptual distance (LPIPS). Of
all the lengths, those below the 1% and above the 99% quantile are left out. Karras et al. 2019, StyleGAN.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.typing import Array, Float, Key


def straight(a: Float[Array, '*s'], b: Float[Array, '*s'], t: Array) -> Float[Array, '*s']:
  return a + t * (b - a)


def great_circle(a: Float[Array, ' z'], b: Float[Array, ' z'], t: Array) -> Float[Array, ' z']:
  """Between directions, which is all that a generator sees of z; of unit length."""
  a, b = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
  across = b - jnp.sum(a * b) * a
  across = across / jnp.maximum(jnp.linalg.norm(across), 1e-12)
  angle = t * jnp.arccos(jnp.clip(jnp.sum(a * b), -1.0, 1.0))
  return jnp.cos(angle) * a + jnp.sin(angle) * across


def perceptual_path_length(
  latents: Callable[[Array], Array],
  draw: Callable[[Array, Array], Array],
  distance: Callable[[Array, Array], Array],
  key: Key[Array, ''],
  *,
  num: int,
  batch_size: int,
  between: Callable[[Array, Array, Array], Array] = straight,
  eps: float = 1e-4,
  ends: bool = False,
) -> float:
  """Eq. 1.

  Args:
    latents: `keys -> latents`, one for each key: z, or the w of a mapping.
    draw: `(latents, keys) -> images`; the same keys, so the same noise, at both places.
    distance: `(images, images) -> distances`.
    key: key of the samples.
    num: pairs; 100,000 is the papers'.
    batch_size: pairs at a time.
    between: p.
    eps: eps of Eq. 1.
    ends: t = 0, else t ~ U(0, 1).
  """

  @jax.jit
  def lengths(root: Array, indices: Array) -> Array:
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), 4))(indices)
    a, b = latents(keys[:, 0]), latents(keys[:, 1])
    t = jnp.where(ends, 0.0, jax.vmap(jax.random.uniform)(keys[:, 2]))
    first, second = jax.vmap(between)(a, b, t), jax.vmap(between)(a, b, t + eps)
    return distance(draw(first, keys[:, 3]), draw(second, keys[:, 3])) / eps**2

  found = [np.asarray(lengths(key, np.arange(begin, begin + batch_size))) for begin in range(0, num, batch_size)]
  return trimmed_mean(np.concatenate(found)[:num])


def trimmed_mean(values: np.ndarray) -> float:
  """The mean of the values between the 1% and the 99% quantile (of the next lower and higher values)."""
  values = np.asarray(values, np.float64)
  low, high = np.percentile(values, 1, method='lower'), np.percentile(values, 99, method='higher')
  return float(values[(values >= low) & (values <= high)].mean())
