"""EDM's process: data plus noise (variance exploding), in the time of its sampling grid (Karras et al. 2022).

  (1)  x_t = x0 + sigma(t) eps,   sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho
  (2)  network_time = log(sigma) / 4
  (3)  training:  log sigma ~ N(mean, std^2)

A uniform grid of t is EDM's grid of sigma (its Eq. 5). At t = 0 the noise is sigma_min, too little to be seen. With
`parameterisation.preconditioned` and a uniform weighting this is EDM's training, Eqs. 7 and 8 there.
"""

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Process
from jaxgen.processes.times import Draw, TimeSampler, independent
from jaxgen.typing import Array


def edm(*, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Process:
  """Eqs. 1 and 2."""
  if not 0 < sigma_min < sigma_max:
    raise ValueError(f'sigma_min is {sigma_min} and sigma_max {sigma_max}; wanted 0 < sigma_min < sigma_max')
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

  def sigma(t: Array) -> Array:
    return (low + t * (high - low)) ** rho

  return Process(alpha=jnp.ones_like, sigma=sigma, network_time=lambda t: jnp.log(sigma(t)) / 4)


def log_normal(
  mean: float = -1.2,
  std: float = 1.2,
  *,
  sigma_min: float = 0.002,
  sigma_max: float = 80.0,
  rho: float = 7.0,
  draw: Draw = independent,
) -> TimeSampler:
  """Times of `edm` with the same bounds whose noise follows Eq. 3, held between the bounds."""
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

  def times(key: Array, batch_size: int) -> Array:
    sigma = jnp.exp(mean + std * jax.scipy.special.ndtri(draw(key, batch_size)))
    return jnp.clip((sigma ** (1 / rho) - low) / (high - low), 0.0, 1.0)

  return times
