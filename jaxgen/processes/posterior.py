"""One reverse step of a Gaussian process, from time t to an earlier time s.

With a = alpha, v = sigma^2, and r = snr(t) / snr(s) in [0, 1):

  (1)  q(x_t | x_s)     = N(a_t/a_s x_s, v_t (1 - r))
  (2)  r                = (a_t sigma_s / (a_s sigma_t))^2
  (3)  q(x_s | x_t, x0) = N(mean, small);   mean = (a_t/a_s) (v_s/v_t) x_t + a_s (1 - r) x0
  (4)  small = v_s (1 - r)       the posterior's variance: right for data that is a single image
  (5)  large = v_t (1 - r)       Eq. 1's, DDPM's beta: right for data that is N(0, I)
  (6)  log learned = f log large + (1 - f) log small,  f = (variance + 1)/2    (IDDPM, Eq. 15)

They hold for any s < t, so a respaced sampler needs no betas of its own, and 1 - r needs no difference of variances
that are almost equal. At s = 0 the small variance is 0 and its logarithm is not defined: Eq. 6 takes the small variance
of the step before it there, as IDDPM does.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxgen.processes.process import Prediction, Process, expand
from jaxgen.typing import Array, Float

# (process, prediction, t, s) -> variance of a reverse step: `small`, `large` or `learned`
Variance = Callable[[Process, Prediction, Array, Array], Array]


def posterior_mean(
  process: Process,
  x0: Float[Array, 'b ...'],
  x_t: Float[Array, 'b ...'],
  t: Float[Array, ' b'],
  s: Float[Array, ' b'],
) -> Float[Array, 'b ...']:
  """The mean of x_s given x_t and x0.  # Eq. 3"""
  of_x_t = process.alpha(t) / process.alpha(s) * (process.sigma(s) / process.sigma(t)) ** 2
  of_x0 = process.alpha(s) * _new_noise(process, t, s)
  return expand(of_x_t, x_t) * x_t + expand(of_x0, x0) * x0


def small_variance(process: Process, t: Float[Array, ' b'], s: Float[Array, ' b']) -> Float[Array, ' b']:
  """Eq. 4."""
  return process.sigma(s) ** 2 * _new_noise(process, t, s)


def large_variance(process: Process, t: Float[Array, ' b'], s: Float[Array, ' b']) -> Float[Array, ' b']:
  """Eq. 5."""
  return process.sigma(t) ** 2 * _new_noise(process, t, s)


def log_small_variance(process: Process, t: Float[Array, ' b'], s: Float[Array, ' b']) -> Float[Array, ' b']:
  """The logarithm of Eq. 4; at s = 0, that of the step from 2t to t."""
  before = jnp.minimum(2 * t, 1)
  from_t, to_s = jnp.where(s > 0, t, before), jnp.where(s > 0, s, before / 2)
  return jnp.log(jnp.maximum(small_variance(process, from_t, to_s), 1e-20))


def small(
  process: Process, prediction: Prediction, t: Float[Array, ' b'], s: Float[Array, ' b']
) -> Float[Array, 'b ...']:
  """The variance of a reverse step, as the posterior's.  # Eq. 4"""
  return expand(small_variance(process, t, s), prediction.x0)


def large(
  process: Process, prediction: Prediction, t: Float[Array, ' b'], s: Float[Array, ' b']
) -> Float[Array, 'b ...']:
  """The variance of a reverse step, as the forward step's.  # Eq. 5"""
  return expand(large_variance(process, t, s), prediction.x0)


def learned(
  process: Process, prediction: Prediction, t: Float[Array, ' b'], s: Float[Array, ' b']
) -> Float[Array, 'b ...']:
  """The variance of a reverse step, as the network says.  # Eq. 6"""
  if prediction.variance is None:
    raise ValueError(
      'the denoiser predicts no variance: wrap its parameterisation in learned_variance, or use small or large'
    )
  fraction = (prediction.variance + 1) / 2
  log_large = expand(jnp.log(large_variance(process, t, s)), prediction.x0)
  log_small = expand(log_small_variance(process, t, s), prediction.x0)
  return jnp.exp(fraction * log_large + (1 - fraction) * log_small)


def _new_noise(process: Process, t: Array, s: Array) -> Array:
  """1 - r: the share of the noise at t that was added after s.  # Eq. 2"""
  ratio = process.alpha(t) * process.sigma(s) / (process.alpha(s) * process.sigma(t))
  return 1 - ratio**2
