"""A last step to no noise at all, for a process that has some left at t = 0, as EDM's has.

  (1)  x = x0(x_t, t) at the last time of the grid: Euler's step from sigma_t to 0

It is the end of EDM's sampler (Karras et al. 2022, Algorithm 1: 18 levels and 0, 35 calls of the network, are
`Sampler(denoised(heun), grids.uniform(17))`), and what DPM-Solver's authors call `denoise_to_zero`.
"""

import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers.sampler import Solver, Times
from jaxgen.typing import Array, Cond, Float, Key


def denoised(solve: Solver) -> Solver:
  """`solve`, and one network call more, whose x0 is the sample.  # Eq. 1"""

  def solver(
    denoise: Denoiser,
    process: Process,
    x: Float[Array, 'b ...'],
    times: Times,
    *,
    cond: Cond | None = None,
    keys: Key[Array, ' b'] | None = None,
  ) -> Float[Array, 'b ...']:
    x = solve(denoise, process, x, times, cond=cond, keys=keys)
    return denoise(x, jnp.full(x.shape[:1], times[-1], jnp.float32), cond or {}).x0

  return solver
