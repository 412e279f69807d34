"""DDIM inversion: the noise from which DDIM, with eta = 0 and the same times, makes a given image.

  (1)  x_s = x_t + (alpha_s - alpha_t) x0(x_t, t) + (sigma_s - sigma_t) eps(x_t, t)                    (DDIM, t to s)
  (2)  x_t = x_s - (alpha_s - alpha_t) x0(y, u) - (sigma_s - sigma_t) eps(y, u)

Eq. 2 with y = x_s, u = s is the usual inversion (Dhariwal & Nichol 2021, appendix F): DDIM's own step upwards, whose
reconstruction has an error of order 1. Its fixed point, y = x_t, u = t, inverts Eq. 1 to the last digit; it is found by
repeating Eq. 2 (Pan et al. 2023). A step from sigma = 0 starts with u = t as well: there eps is undefined.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float


@runtime_checkable
class Invert(Protocol):
  """Finds the noise from which a sampler makes `x`."""

  def __call__(
    self,
    denoise: Denoiser,
    process: Process,
    x: Float[Array, 'b ...'],
    times: Times,
    *,
    cond: Cond | None = None,
    repeats: int = 0,
  ) -> Float[Array, 'b ...']: ...


def ddim_inversion(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  repeats: int = 0,
) -> Float[Array, 'b ...']:
  """Takes `x` from times[-1] back to times[0], 1 + repeats network calls a step.

  Args:
    repeats: number of iterations of Eq. 2 towards its fixed point; 0 is the usual inversion.

  Returns:
    Images at times[0], for `ddim(denoise, process, ..., times)`.
  """
  if repeats < 0:
    raise ValueError(f'repeats is {repeats}; it is 0 (the usual inversion) or more')
  times = jnp.asarray(times)

  def step(x: Array, t_s: tuple[Array, Array]) -> tuple[Array, None]:
    t, s = t_s
    da, ds = process.alpha(s) - process.alpha(t), process.sigma(s) - process.sigma(t)

    def up(y: Array, u: Array) -> Array:
      prediction = denoise(y, jnp.full(x.shape[:1], u), cond or {})
      return x - da * prediction.x0 - ds * prediction.eps  # Eq. 2

    start = up(x, jnp.where(process.sigma(s) > 0, s, t))
    return jax.lax.fori_loop(0, repeats, lambda _, y: up(y, t), start), None

  return jax.lax.scan(step, x, (times[:-1], times[1:]), reverse=True)[0]
