"""Sampling with a consistency model, whose x0 is the end of the path through x_t (Song et al. 2023, Algorithm 1).

  (1)  x0  = f(x_t, t)
  (2)  x_s = alpha_s x0 + std z,   z ~ N(0, I),   std^2 = sigma_s^2 - (alpha_s sigma_0 / alpha_0)^2

A process such as EDM's has a little noise left at t = 0, sigma_0; x0 holds it, so Eq. 2 adds as much less. A step to
t = 0 adds none. One step is Eq. 1 alone; more of them refine.
"""

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers.noise import required, step_noise
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


def consistency(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], one network call a step."""
  keys, times = required(keys, 'consistency'), jnp.asarray(times)
  alpha, sigma = process.alpha(times[1:]), process.sigma(times[1:])
  left = process.sigma(jnp.float32(0)) / process.alpha(jnp.float32(0))
  std = jnp.sqrt(jnp.maximum(sigma**2 - (alpha * left) ** 2, 0.0))

  def step(x: Array, at: tuple[Array, ...]) -> tuple[Array, None]:
    i, t, alpha, std = at
    x0 = denoise(x, jnp.full(x.shape[:1], t), cond or {}).x0  # Eq. 1
    return alpha * x0 + std * step_noise(keys, i, x), None  # Eq. 2

  return jax.lax.scan(step, x, (jnp.arange(len(std)), times[:-1], alpha, std))[0]
