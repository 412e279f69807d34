"""DDIM (Song et al. 2020): deterministic for eta = 0, DDPM's posterior for eta = 1.

  (1)  x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z,   z ~ N(0, I)
  (2)  std^2 = eta^2 small(t, s),   Eq. 4 of processes/posterior.py

Order 1 for eta = 0, and exact where x0 and eps do not change along the path.
"""

import jax
import jax.numpy as jnp

from jaxgen.processes import posterior
from jaxgen.processes.process import Denoiser, Process, expand
from jaxgen.samplers.noise import required, step_noise
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


def ddim(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  eta: float = 0.0,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], one network call a step.

  Args:
    eta: share of DDPM's noise, in [0, 1].
  """
  if not 0 <= eta <= 1:
    raise ValueError(f'eta is {eta}; it goes from 0 (deterministic) to 1 (as noisy as DDPM)')
  times = jnp.asarray(times)

  def step(x: Array, i_t_s: tuple[Array, Array, Array]) -> tuple[Array, None]:
    i, t, s = i_t_s[0], *(jnp.full(x.shape[:1], time) for time in i_t_s[1:])
    prediction = denoise(x, t, cond or {})
    variance = eta**2 * posterior.small_variance(process, t, s) if eta else jnp.zeros_like(t)  # Eq. 2
    of_eps = jnp.sqrt(process.sigma(s) ** 2 - variance)
    x_s = expand(process.alpha(s), x) * prediction.x0 + expand(of_eps, x) * prediction.eps
    if eta:
      x_s += expand(jnp.sqrt(variance), x) * step_noise(required(keys, 'ddim with eta > 0'), i, x)
    return x_s, None  # Eq. 1

  return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]
