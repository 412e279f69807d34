"""Euler's method on the probability-flow ODE, written with the schedule in place of time:

  (1)  dx = x0(x, t) d alpha + eps(x, t) d sigma                            (dx/dt = alpha' x0 + sigma' eps)
  (2)  x_s = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps

Under rectified flow, Eq. 2 is x_t + (s - t) velocity. Under every process it is DDIM without noise, since x0 and eps
satisfy x_t = alpha_t x0 + sigma_t eps, and it is exact where x0 and eps do not change along the path. Order 1.

Differs from Euler in t: sigma' of a VP process is infinite at t = 0, the difference of sigma is not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.processes.process import Prediction, Process
from jaxgen.samplers.clipping import clipped
from jaxgen.typing import Array, Cond, Float, Key


def euler(
  denoise: Callable[..., Prediction],
  process: Process,
  x: Float[Array, 'b ...'],
  times: Float[Array | np.ndarray, ' n'],
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  clip: float | None = None,
) -> Float[Array, 'b ...']:
  """Integrates from `x` at times[0] to times[-1], one network call a step.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`.
    process: what the denoiser was trained to undo.
    x: images at times[0]: sigma(1) times noise if times[0] is 1.
    times: decreasing; see samplers/grids.py.
    cond: conditioning with leading batch axis.
    keys: not used; here so that every sampler is called alike.
    clip: keep x0 in [-clip, clip].
  """
  denoise = clipped(denoise, process, clip)
  times = jnp.asarray(times)

  def step(x: Array, t_s: tuple[Array, Array]) -> tuple[Array, None]:
    t, s = t_s
    prediction = denoise(x, jnp.full(x.shape[:1], t), cond or {})
    da, ds = process.alpha(s) - process.alpha(t), process.sigma(s) - process.sigma(t)
    return x + da * prediction.x0 + ds * prediction.eps, None  # Eq. 2

  return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]
