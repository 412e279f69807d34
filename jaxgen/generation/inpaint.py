"""Inpainting with any trained denoiser: RePaint (Lugmayr et al. 2022).

(1)  each reverse step from t to s is followed by x_s <- m x_s(known) + (1 - m) x_s, and taken again `repeats` times
     from a new x_t ~ q(x_t | x_s)
(2)  q(x_t | x_s) = N(r x_s, sigma(t)^2 - r^2 sigma(s)^2),   r = alpha(t)/alpha(s)
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.generation.edit import IMAGE
from jaxgen.objectives.base import Denoising, SampleFn, decoded, guided_denoiser, split_keys, walk_times
from jaxgen.processes.process import Prediction, Process, corrupt, image_noise
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.noise import step_noise
from jaxgen.typing import Array, Cond, Float, Key

MASK = 'edited_mask'  # entry of `cond`: float b h w 1, 1 where a pixel is known and 0 where it is sampled


def inpainted(d: Denoising, *, repeats: int = 10) -> SampleFn:
  """Samples the part of cond[IMAGE] that is not in cond[MASK], at the walk's times."""
  times = walk_times(d)

  def sample(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    noise_keys, step_keys = split_keys(keys)
    process = d.process(params)
    noise = process.sigma(jnp.float32(1)) * image_noise(noise_keys, d.shape)
    mask = jax.image.resize(cond[MASK], (len(keys), *d.shape[:2], 1), 'linear')
    run = partial(repaint, guided_denoiser(d, params, frozen), process, repeats=repeats, clip=d.limit, sampler=d.walk)
    known = d.encode(frozen, cond[IMAGE])
    mask = jnp.broadcast_to(mask, known.shape)
    x0 = run(noise, times, known=known, mask=mask, cond=d.condition(cond), keys=step_keys)
    return decoded(d, frozen, x0)

  return sample


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
  """Fills in what is not known.  # Eq. 1

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
      return ratio * x_s + added * step_noise(of_repeat, 2, x), x_s  # Eq. 2

    _, each = jax.lax.scan(again, x, jnp.arange(repeats))
    return each[-1], None

  return jax.lax.scan(step, x, (jnp.arange(len(grid) - 1), grid[:-1], grid[1:]))[0]
