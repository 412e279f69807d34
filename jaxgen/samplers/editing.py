"""Images from images: what noise lets one do with a trained denoiser.

  (1)  SDEdit (Meng et al. 2022):     x_t = alpha(t) x0 + sigma(t) eps at a time of one's choice, then any sampler
  (2)  RePaint (Lugmayr et al. 2022): each reverse step from t to s is followed by x_s <- m x_s(known) + (1 - m) x_s,
                                      and taken again `repeats` times from a new x_t ~ q(x_t | x_s)
  (3)  q(x_t | x_s) = N(r x_s, sigma(t)^2 - r^2 sigma(s)^2),   r = alpha(t)/alpha(s)
  (4)  slerp (Shoemake 1985):         sin((1 - w) o)/sin(o) a + sin(w o)/sin(o) b,   o the angle between a and b

A straight mix of two noises has too little variance; Eq. 4 keeps their length.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.processes.process import Prediction, Process, corrupt, expand, image_noise
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.noise import step_noise
from jaxgen.typing import Array, Cond, Float, Key


def sdedit(
  sampler: Callable[..., Array],
  denoise: Callable[..., Prediction],
  process: Process,
  x0: Float[Array, 'b ...'],
  times: Float[np.ndarray, ' n'],
  *,
  strength: float,
  cond: Cond | None = None,
  keys: Key[Array, ' b'],
  **options,
) -> Float[Array, 'b ...']:
  """Redraws images, keeping what survives noise of time `strength`.  # Eq. 1

  Args:
    sampler: any of samplers/, such as `euler`; `options` are its own.
    denoise, process, times, cond: the sampler's; of `times`, those below `strength` are used.
    x0: images in [-1, 1].
    strength: time in (0, 1]: 1 keeps next to nothing.
    keys: one for each image.
  """
  if not 0 < strength <= 1:
    raise ValueError(f'strength is {strength}; it is a time, more than 0 and at most 1')
  times = np.asarray(times, np.float32)
  grid = np.append(np.float32(strength), times[times < np.float32(strength)])
  noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  x = corrupt(process, x0, image_noise(noise_keys, x0.shape[1:]), jnp.full(len(x0), strength, jnp.float32))
  return sampler(denoise, process=process, x=x, times=grid, cond=cond, keys=step_keys, **options)


def repaint(
  denoise: Callable[..., Prediction],
  process: Process,
  x: Float[Array, 'b ...'],
  times: Float[Array | np.ndarray, ' n'],
  *,
  known: Float[Array, 'b ...'],
  mask: Float[Array, 'b ...'],
  cond: Cond | None = None,
  keys: Key[Array, ' b'],
  repeats: int = 10,
  clip: float | None = None,
  sampler: Callable[..., Array] = ddpm,
) -> Float[Array, 'b ...']:
  """Fills in what is not known.  # Eq. 2

  Args:
    denoise, process, times, cond, clip: the sampler's.
    x: noise at times[0].
    known: images; what they hold where the mask is 0 does not matter.
    mask: 1 where a pixel is known, 0 where it is wanted; fractions blend.
    keys: one for each image.
    repeats: times that each step is taken; more make the two parts agree better.
    sampler: takes the reverse steps, one at a time: `ddpm`, or `consistency` for a consistency model.
  """
  if repeats < 1:
    raise ValueError(f'repeats is {repeats}; each step is taken at least once')
  grid = jnp.asarray(times)

  def step(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
    index, t, s = inputs
    of_step = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
    ratio = process.alpha(t) / process.alpha(s)
    added = jnp.sqrt(jnp.maximum(process.sigma(t) ** 2 - ratio**2 * process.sigma(s) ** 2, 0.0))

    def again(x_t: Array, repeat: Array) -> tuple[Array, Array]:
      of_repeat = jax.vmap(jax.random.fold_in, in_axes=(0, None))(of_step, repeat)
      x_s = sampler(denoise, process, x_t, jnp.stack([t, s]), cond=cond, keys=of_repeat, clip=clip)
      noised = corrupt(process, known, step_noise(of_repeat, 1, x), jnp.full(len(x), s))
      x_s = mask * noised + (1 - mask) * x_s
      return ratio * x_s + added * step_noise(of_repeat, 2, x), x_s  # Eq. 3

    _, each = jax.lax.scan(again, x, jnp.arange(repeats))
    return each[-1], None

  return jax.lax.scan(step, x, (jnp.arange(len(grid) - 1), grid[:-1], grid[1:]))[0]


def slerp(
  a: Float[Array, 'b ...'], b: Float[Array, 'b ...'], weight: float | Float[Array, ' b']
) -> Float[Array, 'b ...']:
  """From `a` (weight 0) to `b` (weight 1), image by image; straight where they point the same way.  # Eq. 4"""
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
