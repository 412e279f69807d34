"""Euler-Maruyama on the reverse SDE (Anderson 1982; Song et al. 2021), written with the schedule in place of time.

The SDE is the probability-flow ODE and, on top, as much Langevin dynamics as undoes the noise that it adds:

  (1)  dx = x0 d alpha + eps d sigma - (g^2 dt)/(2 sigma) eps + g dw,   g^2 dt = 2 sigma^2 d log(alpha/sigma)
  (2)  x_s = x_t + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps - v/(2 sigma_t) eps + sqrt(v) z,   z ~ N(0, I)
  (3)  v = sigma_t^2 (1 - (alpha_t sigma_s/(alpha_s sigma_t))^2),   the noise that q(x_t | x_s) adds

Any other amount of noise leaves the distribution as it is too: with v = 2 w(t) (t - s), w is SiT's diffusion
coefficient (Ma et al. 2024), for which the paper proposes

  (4)  w = g^2/2,   sigma,   t,   sin^4(pi t/2) ("decreasing"),   sin^2(pi t) ("increasing-decreasing"),   or 1

The last step, to t = 0, adds no noise. Order 1 in distribution.

Differs from Euler-Maruyama in t: Eq. 3 is g^2 dt to first order, and never larger than sigma_t^2. Where
|log(alpha/sigma)| is above exponential.LIMIT, g^2 grows without bound and Eq. 3's v is 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.processes import posterior
from jaxgen.processes.process import Denoiser, Process, rates
from jaxgen.samplers import exponential
from jaxgen.samplers.noise import required, step_noise
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key

Diffusion = Callable[[Process, Array], Array]  # (process, t) -> w of Eq. 4


def euler_maruyama(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  diffusion: Diffusion | None = None,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], one network call a step.

  Args:
    diffusion: w of Eq. 4, such as `decreasing`; None for Eq. 3's v, the noise that the process adds.
  """
  keys, times = required(keys, 'euler_maruyama'), jnp.asarray(times)
  alpha, sigma = process.alpha(times), process.sigma(times)
  if diffusion is None:
    is_regular = exponential.regular(exponential.half_log_snr(process, times))
    v = jnp.where(is_regular, posterior.large_variance(process, times[:-1], times[1:]), 0.0)  # Eq. 3
  else:
    v = 2 * diffusion(process, times[:-1]) * (times[:-1] - times[1:])
  std = jnp.sqrt(v) * (times[1:] > 0)
  of_eps = sigma[1:] - sigma[:-1] - v / (2 * sigma[:-1])

  def step(x: Array, at: tuple[Array, ...]) -> tuple[Array, None]:
    i, t, of_x0, of_eps, std = at
    prediction = denoise(x, jnp.full(x.shape[:1], t), cond or {})
    return x + of_x0 * prediction.x0 + of_eps * prediction.eps + std * step_noise(keys, i, x), None  # Eq. 2

  return jax.lax.scan(step, x, (jnp.arange(len(v)), times[:-1], alpha[1:] - alpha[:-1], of_eps, std))[0]


def of_process(process: Process, t: Float[Array, '*s']) -> Float[Array, '*s']:
  """g^2/2, SiT's "SBDM"; infinite where alpha = 0."""
  a, s = process.alpha(t), process.sigma(t)
  da, ds = rates(process, t)
  return s * ds - s * s * da / a


def of_sigma(process: Process, t: Float[Array, '*s']) -> Float[Array, '*s']:
  """sigma(t)."""
  return process.sigma(t)


def linear(process: Process, t: Float[Array, '*s']) -> Float[Array, '*s']:
  """t."""
  return t


def decreasing(process: Process, t: Float[Array, '*s']) -> Float[Array, '*s']:
  """sin^4(pi t/2): most noise at the start."""
  return jnp.sin(jnp.pi * t / 2) ** 4


def increasing_decreasing(process: Process, t: Float[Array, '*s']) -> Float[Array, '*s']:
  """sin^2(pi t): none at both ends."""
  return jnp.sin(jnp.pi * t) ** 2


def constant(process: Process, t: Float[Array, '*s']) -> Float[Array, '*s']:
  """1."""
  return jnp.ones_like(t)
