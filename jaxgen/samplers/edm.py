"""EDM's stochastic Heun (Karras et al. 2022, Algorithm 2), on any process, with y = x/alpha and nu = sigma/alpha.

Of N steps, the one from nu to nu_s adds noise up to nu' = (1 + gamma) nu, then takes Heun's step down to nu_s:

  (1)  gamma = min(churn/N, sqrt(2) - 1) where nu_min <= nu <= nu_max, else 0
  (2)  y'   = y + noise sqrt(nu'^2 - nu^2) z,   z ~ N(0, I)
  (3)  y_s  = y' + (nu_s - nu') eps' + (nu_s - nu') (eps_s - eps')/2,   eps' at (y', nu'), eps_s at Euler's (y_s, nu_s)

The network is called at the time t' that has nu' = sigma/alpha. Without churn this is Heun's method in nu. Order 2.
A step to sigma = 0 or from alpha = 0 is Euler's, x_s = alpha_s x0 + sigma_s eps.

Differs from Algorithm 2: noise is never raised above that of times[0], which may be the process's last.
"""

import math

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Prediction, Process
from jaxgen.samplers import exponential
from jaxgen.samplers.noise import required, step_noise
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


def edm(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  churn: float = 40.0,
  nu_min: float = 0.05,
  nu_max: float = 50.0,
  noise: float = 1.003,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], two network calls a step, one if the step ends at t = 0.

  Args:
    churn: S_churn; 40, with the next three, is EDM's choice for ImageNet 64; 0 is deterministic.
    nu_min: S_min, of sigma/alpha.
    nu_max: S_max, of sigma/alpha.
    noise: S_noise, a little above 1 against the blur of an imperfect network.
  """
  if churn < 0:
    raise ValueError(f'churn is {churn}; it is 0 (deterministic) or more')
  times = jnp.asarray(times)
  keys = required(keys, 'edm with churn > 0') if churn else keys
  steps, l = len(times) - 1, exponential.half_log_snr(process, times)
  gamma = min(churn / steps, math.sqrt(2) - 1)
  nu = process.sigma(times) / process.alpha(times)
  is_churned = exponential.regular(l) & (nu_min <= nu[:-1]) & (nu[:-1] <= nu_max) & (gamma > 0)  # Eq. 1
  raised = exponential.time_of(process, l[:-1] - math.log1p(gamma), times[:-1], jnp.full_like(l[:-1], times[0]))
  raised = jnp.where(is_churned, raised, times[:-1])
  alpha, sigma = process.alpha(raised), process.sigma(raised)
  grow = jnp.where(is_churned, alpha / process.alpha(times[:-1]), 1.0)
  variance = sigma**2 - (grow * process.sigma(times[:-1])) ** 2
  std = noise * jnp.sqrt(jnp.where(is_churned, jnp.maximum(variance, 0.0), 0.0))
  to_alpha, to_sigma = process.alpha(times[1:]), process.sigma(times[1:])
  heun = exponential.regular(l)
  of_change = jnp.where(heun, (to_sigma - to_alpha * sigma / jnp.where(heun, alpha, 1.0)) / 2, 0.0)

  def step(x: Array, at: tuple[Array, ...]) -> tuple[Array, None]:
    i, t, s, heun, grow, std, of_x0, of_eps, of_change = at

    def predict(x_at: Array, time: Array) -> Prediction:
      return denoise(x_at, jnp.full(x.shape[:1], time), cond or {})

    if gamma and keys is not None:
      x = grow * x + std * step_noise(keys, i, x)  # Eq. 2
    first = predict(x, t)
    x_s = of_x0 * first.x0 + of_eps * first.eps
    correct = lambda: x_s + of_change * (predict(x_s, s).eps - first.eps)  # noqa: E731  # Eq. 3
    return jax.lax.cond(heun, correct, lambda: x_s), None

  at = jnp.arange(steps), raised, times[1:], heun, grow, std, to_alpha, to_sigma, of_change
  return jax.lax.scan(step, x, at)[0]
