"""Inpainting with any trained denoiser, and with one that was trained for it.

RePaint (Lugmayr et al. 2022) takes any:

(1)  each reverse step from t to s is followed by x_s <- m x_s(known) + (1 - m) x_s, and taken again `repeats` times
     from a new x_t ~ q(x_t | x_s)
(2)  q(x_t | x_s) = N(r x_s, sigma(t)^2 - r^2 sigma(s)^2),   r = alpha(t)/alpha(s)

Stable Diffusion's inpainting models (Rombach et al. 2022) read, as more channels beside x_t,

(3)  concat = [1 - m, encode(m image)]

Differs from diffusers in Eq. 3: the image is encoded as its mean, not as a sample.
"""

import jax
import jax.numpy as jnp

from jaxgen.objectives.base import (
  Denoising,
  InpaintFn,
  decoded,
  guided_denoiser,
  sample_from,
  split_keys,
  walk_of,
)
from jaxgen.processes.process import Denoiser, Process, corrupt, image_noise
from jaxgen.samplers.clipping import clipped
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.noise import step_noise
from jaxgen.samplers.sampler import Solver, Times
from jaxgen.typing import Array, Cond, Float, Key


def inpainted(d: Denoising, *, repeats: int = 10) -> InpaintFn:
  """`(params, frozen, cond, keys, *, image, mask) -> images`: samples what is not in the mask, at the walk's times.

  `mask` is float b h w 1, 1 where a pixel of `image` is known and 0 where it is sampled.
  """
  solve, times = walk_of(d)

  def sample(
    params: dict,
    frozen: dict,
    cond: Cond,
    keys: Key[Array, ' b'],
    *,
    image: Float[Array, 'b h w c'],
    mask: Float[Array, 'b h w 1'],
  ) -> Float[Array, 'b h w c']:
    noise_keys, step_keys, encode_keys = split_keys(keys)
    process, known = d.process(params), d.encode(frozen, image)
    encoded, without = d.condition(params, frozen, cond, encode_keys)
    denoise = clipped(guided_denoiser(d, params, frozen, without), process, d.limit)
    noise = process.sigma(jnp.float32(1)) * image_noise(noise_keys, d.shape)
    mask = jax.image.resize(mask, (len(keys), *d.shape[:2], 1), 'linear')
    mask = jnp.broadcast_to(mask, known.shape)
    x0 = repaint(
      denoise, process, noise, times, known=known, mask=mask, cond=encoded, keys=step_keys, repeats=repeats, solve=solve
    )
    return decoded(d, frozen, x0)

  return sample


def concat_inpainted(d: Denoising) -> InpaintFn:
  """As `inpainted`, by a network that reads the mask and the known pixels, `cond['concat']`.  # Eq. 3"""

  def sample(
    params: dict,
    frozen: dict,
    cond: Cond,
    keys: Key[Array, ' b'],
    *,
    image: Float[Array, 'b h w c'],
    mask: Float[Array, 'b h w 1'],
  ) -> Float[Array, 'b h w c']:
    known = (mask > 0.5).astype(jnp.float32)
    factor = image.shape[1] // d.shape[0]
    seen = [1 - known[:, ::factor, ::factor], d.encode(frozen, image * known)]
    noise = image_noise(split_keys(keys)[0], d.shape)
    return sample_from(d, params, frozen, cond, noise, keys, beside={'concat': jnp.concatenate(seen, axis=-1)})

  return sample


def repaint(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  known: Float[Array, 'b ...'],
  mask: Float[Array, 'b ...'],
  cond: Cond | None = None,
  keys: Key[Array, ' b'],
  repeats: int = 10,
  solve: Solver = ddpm,
) -> Float[Array, 'b ...']:
  """Fills in the unknown pixels.  # Eq. 1

  Args:
    denoise, process, times, cond: the solver's.
    x: noise at times[0].
    known: images; what they hold where the mask is 0 does not matter.
    mask: 1 where a pixel is known, 0 where it is wanted; fractions blend.
    keys: one for each image.
    repeats: times that each step is taken; more make the two parts agree better.
    solve: takes the reverse steps, one at a time: `ddpm`, or `consistency` for a consistency model.
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
      x_s = solve(denoise, process, x_t, jnp.stack([t, s]), cond=cond, keys=of_repeat)
      noised = corrupt(process, known, step_noise(of_repeat, 1, x), jnp.full(len(x), s))
      x_s = mask * noised + (1 - mask) * x_s
      return ratio * x_s + added * step_noise(of_repeat, 2, x), x_s  # Eq. 2

    _, each = jax.lax.scan(again, x, jnp.arange(repeats))
    return each[-1], None

  return jax.lax.scan(step, x, (jnp.arange(len(grid) - 1), grid[:-1], grid[1:]))[0]
