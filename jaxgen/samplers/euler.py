"""Euler's method on the probability-flow ODE, written with the schedule in place of time:

  (1)  dx = x0(x, t) d alpha + eps(x, t) d sigma                            (dx/dt = alpha' x0 + sigma' eps)
  (2)  x_s = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps

Under rectified flow, Eq. 2 is x_t + (s - t) velocity. Under every process it is DDIM without noise, since x0 and eps
satisfy x_t = alpha_t x0 + sigma_t eps, and it is exact where x0 and eps do not change along the path. Order 1.

Differs from Euler in t: sigma' of a VP process is infinite at t = 0, the difference of sigma is not.
"""

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


def euler(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
) -> Float[Array, 'b ...']:
  """Integrates from `x` at times[0] to times[-1], one network call a step."""
  times = jnp.asarray(times)

  def step(x: Array, t_s: tuple[Array, Array]) -> tuple[Array, None]:
    t, s = t_s
    prediction = denoise(x, jnp.full(x.shape[:1], t), cond or {})
    da, ds = process.alpha(s) - process.alpha(t), process.sigma(s) - process.sigma(t)
    return x + da * prediction.x0 + ds * prediction.eps, None  # Eq. 2

  return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]
