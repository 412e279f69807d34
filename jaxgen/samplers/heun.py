"""Heun's method (the trapezoidal rule) on the probability-flow ODE, written with the schedule in place of time:

  (1)  dx = x0(x, t) d alpha + eps(x, t) d sigma
  (2)  y   = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps                                   (Euler)
  (3)  x_s = x_t + (alpha_s - alpha_t) (x0 + x0_y)/2 + (sigma_s - sigma_t) (eps + eps_y)/2,   x0_y, eps_y at (y, s)

Under rectified flow this is Heun on the velocity, under a process with alpha = 1 it is EDM's (Karras et al. 2022,
Algorithm 1). Order 2. A step to sigma = 0 is Euler's, as in EDM: there eps cannot be separated from x.
"""

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


def heun(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
) -> Float[Array, 'b ...']:
  """Integrates from `x` at times[0] to times[-1], two network calls a step, one if the step ends at t = 0."""
  times = jnp.asarray(times)

  def step(x: Array, t_s: tuple[Array, Array]) -> tuple[Array, None]:
    t, s = t_s
    da, ds = process.alpha(s) - process.alpha(t), process.sigma(s) - process.sigma(t)

    def move(time: Array, x_at: Array) -> Array:
      prediction = denoise(x_at, jnp.full(x.shape[:1], time), cond or {})
      return da * prediction.x0 + ds * prediction.eps

    first = move(t, x)  # Eq. 2
    second = jax.lax.cond(process.sigma(s) > 0, lambda: move(s, x + first), lambda: first)
    return x + (first + second) / 2, None  # Eq. 3

  return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]
