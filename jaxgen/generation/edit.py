"""Editing images with noise: SDEdit (Meng et al. 2022).

  (1)  x_t = alpha(t) x0 + sigma(t) eps at a chosen time t, the strength; then any sampler from there

What remains of the image under the noise is kept; the rest is sampled again.
"""

import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import Denoising, EditFn, decoded, guided_denoiser, split_keys
from jaxgen.processes.process import Denoiser, Process, corrupt, image_noise
from jaxgen.samplers.sampler import Solver, Times
from jaxgen.typing import Array, Cond, Float, Key


def edited(d: Denoising, *, strength: float) -> EditFn:
  """`(params, frozen, cond, keys, *, image) -> images`, sampled from `image` with noise of time `strength`."""

  def sample(
    params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b'], *, image: Float[Array, 'b h w c']
  ) -> Float[Array, 'b h w c']:
    encoded, without = d.condition(params, frozen, cond, split_keys(keys)[2])
    denoise, x0 = guided_denoiser(d, params, frozen, without), d.encode(frozen, image)
    solve, times = d.sampler
    x0 = sdedit(solve, denoise, d.process(params), x0, times, strength=strength, cond=encoded, keys=keys)
    return decoded(d, frozen, x0)

  return sample


def sdedit(
  solve: Solver,
  denoise: Denoiser,
  process: Process,
  x0: Float[Array, 'b ...'],
  times: Times,
  *,
  strength: float,
  cond: Cond | None = None,
  keys: Key[Array, ' b'],
) -> Float[Array, 'b ...']:
  """Samples images again, keeping what survives noise of time `strength`.  # Eq. 1

  Args:
    solve: a solver, such as `euler`.
    denoise, process, times, cond: the solver's; of `times`, those below `strength` are used.
    x0: images in [-1, 1].
    strength: time in (0, 1]; 1 keeps almost nothing.
    keys: one for each image.
  """
  if not 0 < strength <= 1:
    raise ValueError(f'strength is {strength}; it is a time, more than 0 and at most 1')
  times = np.asarray(times, np.float32)
  grid = np.append(np.float32(strength), times[times < np.float32(strength)])
  noise_keys, step_keys, _ = split_keys(keys)
  x = corrupt(process, x0, image_noise(noise_keys, x0.shape[1:]), jnp.full(len(x0), strength, jnp.float32))
  return solve(denoise, process, x, grid, cond=cond, keys=step_keys)
