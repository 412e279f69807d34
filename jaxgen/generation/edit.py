"""Editing images with noise: SDEdit (Meng et al. 2022).

  (1)  x_t = alpha(t) x0 + sigma(t) eps at a chosen time t, the strength; then any sampler from there

What the noise left of the image stays; the rest is sampled again.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import Denoising, SampleFn, decoded, guided_denoiser, sampler_times
from jaxgen.processes.process import Prediction, Process, corrupt, image_noise
from jaxgen.typing import Array, Cond, Float, Key

IMAGE = 'edited_image'  # entry of `cond`: float b h w c in [-1, 1], the image to change; the network does not see it


def edited(d: Denoising, *, strength: float) -> SampleFn:
  """Samples from cond[IMAGE] with noise of time `strength`."""
  times = sampler_times(d)

  def sample(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    x0 = d.encode(frozen, cond[IMAGE])
    run = partial(sdedit, d.sampler, guided_denoiser(d, params, frozen), d.process(params), strength=strength)
    return decoded(d, frozen, run(x0, times, cond=d.condition(cond), keys=keys))

  return sample


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
  """Samples images again, keeping what survives noise of time `strength`.  # Eq. 1

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
