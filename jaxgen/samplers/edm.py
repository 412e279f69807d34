"""EDM's stochastic Heun (Karras et al. 2022, Algorithm 2), on any process, with y = x/alpha and nu = sigma/alpha.

Of N steps, the one from nu to nu_s adds noise up to nu' = (1 + gamma) nu, then takes Heun's step down to nu_s:

  (1)  gamma = min(churn/N, sqrt(2) - 1) where nu_min <= nu <= nu_max, else 0
  (2)  y'   = y + noise sqrt(nu'^2 - nu^2) z,   z ~ N(0, I)
  (3)  y_s  = y' + (nu_s - nu') eps' + (nu_s - nu') (eps_s - eps')/2,   eps' at (y', nu'), eps_s at Euler's (y_s, nu_s)

The network is called at the time t' that has nu' = sigma/alpha. Without churn this is Heun's method in nu. Order 2.
A step to sigma = 0 or from alpha = 0 is Euler's, x_s = alpha_s x0 + sigma_s eps. Where noise is left at t = 0, as in
EDM's process, one more step goes to sigma = 0, and N counts it: 18 times of EDM are 18 steps, 35 network calls.
`order=1` leaves Eq. 3's last term out: Euler's method with churn.

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
  order: int = 2,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], two network calls a step, one if the step ends without noise.

  Args:
    churn: S_churn; 40, with the next three, is EDM's choice for ImageNet 64; 0 is deterministic.
    nu_min: S_min, of sigma/alpha.
    nu_max: S_max, of sigma/alpha.
    noise: S_noise, a little above 1 against the blur of an imperfect network.
    order: 2, or 1 for Euler's steps of one network call.
  """
  if churn < 0:
    raise ValueError(f'churn is {churn}; it is 0 (deterministic) or more')
  if order not in (1, 2):
    raise ValueError(f'edm has orders 1 and 2, got order={order}')
  times = jnp.asarray(times)
  keys = required(keys, 'edm with churn > 0') if churn else keys
  l, level = exponential.half_log_snr(process, times), process.sigma(times)
  is_left = (times[-1] == 0) & (level[-1] > 0)  # noise, in the data
  count = len(times) - 1 + is_left  # N
  gamma = jnp.minimum(churn / count, math.sqrt(2) - 1)
  nu = level / process.alpha(times)
  regular = jnp.append(exponential.regular(l), is_left)
  is_churned = regular & (nu_min <= nu) & (nu <= nu_max) & (gamma > 0)  # Eq. 1
  raised = exponential.time_of(process, l - jnp.log1p(gamma), times, jnp.full_like(l, times[0]))
  raised = jnp.where(is_churned, raised, times)
  alpha, sigma = process.alpha(raised), process.sigma(raised)
  grow = jnp.where(is_churned, alpha / process.alpha(times), 1.0)
  variance = sigma**2 - (grow * level) ** 2
  std = noise * jnp.sqrt(jnp.where(is_churned, jnp.maximum(variance, 0.0), 0.0))
  to_alpha, to_sigma = process.alpha(times[1:]), process.sigma(times[1:])
  heun = exponential.regular(l) & (order == 2)
  of_change = jnp.where(heun, (to_sigma - to_alpha * sigma[:-1] / jnp.where(heun, alpha[:-1], 1.0)) / 2, 0.0)

  def predict(x: Array, time: Array) -> Prediction:
    return denoise(x, jnp.full(x.shape[:1], time), cond or {})

  def churned(x: Array, i: Array) -> Array:
    return grow[i] * x + std[i] * step_noise(keys, i, x) if churn and keys is not None else x  # Eq. 2

  def step(x: Array, at: tuple[Array, ...]) -> tuple[Array, None]:
    i, s, heun, of_x0, of_eps, of_change = at
    x = churned(x, i)
    first = predict(x, raised[i])
    x_s = of_x0 * first.x0 + of_eps * first.eps
    correct = lambda: x_s + of_change * (predict(x_s, s).eps - first.eps)  # noqa: E731  # Eq. 3
    return jax.lax.cond(heun, correct, lambda: x_s), None

  last = jnp.int32(len(times) - 1)
  x = jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[1:], heun, to_alpha, to_sigma, of_change))[0]
  return jax.lax.cond(is_left, lambda x: predict(churned(x, last), raised[last]).x0, lambda x: x, x)
