"""DDPM's ancestral sampling (Ho et al. 2020), from any time to any earlier one.

  (1)  x_s = mean(x0(x_t), x_t) + sqrt(variance) z,   z ~ N(0, I);   mean and variances: processes/posterior.py
  (2)  no noise in a step to s = 0, whose mean is x0

Respacing (IDDPM) is a matter of `times`. The distribution is exact in the limit of small steps, whichever variance.
"""

import jax
import jax.numpy as jnp

from jaxgen.processes import posterior
from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers.noise import required, step_noise
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


def ddpm(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  variance: posterior.Variance = posterior.small,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], one network call a step.

  Args:
    variance: posterior.small, posterior.large, or posterior.learned for a network that predicts it.
  """
  keys, times = required(keys, 'ddpm'), jnp.asarray(times)

  def step(x: Array, i_t_s: tuple[Array, Array, Array]) -> tuple[Array, None]:
    i, t, s = i_t_s[0], *(jnp.full(x.shape[:1], time) for time in i_t_s[1:])
    prediction = denoise(x, t, cond or {})
    std = jnp.sqrt(variance(process, prediction, t, s)) * (i_t_s[2] > 0)  # Eq. 2
    mean = posterior.posterior_mean(process, prediction.x0, x, t, s)
    return mean + std * step_noise(keys, i, x), None  # Eq. 1

  return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]
