"""The variational bound of a discrete process, term by term, in bits per dimension (Ho et al. 2020, Eq. 5).

With s = t - 1/T, q the true reverse step given x0, and p the model's:

  (1)  L_t = KL(q(x_s | x_t, x0) || p(x_s | x_t))            t > 1/T
  (2)  L_0 = -log p(x0 | x_t)                                t = 1/T: the mass in each 8-bit pixel's bin
  (3)  L_T = KL(q(x_1 | x0) || N(0, I))                      the prior, a constant
  (4)  -log p(x0) <= L_0 + sum L_t + L_T

The model's mean is posterior_mean of its x0; its variance is posterior.learned, or small or large where it predicts
none.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.processes import posterior
from jaxgen.processes.process import Denoiser, Prediction, Process, corrupt, expand, image_noise
from jaxgen.typing import Array, Cond, Float, Key

BIN = 2 / 255  # width of an 8-bit pixel's bin in [-1, 1]


class Bound(NamedTuple):
  """Eq. 4 of each image, in bits per dimension; its mean over data bounds their entropy from above.

  Attributes:
    terms: L_0, then L_t of each later step.
    prior: L_T.
  """

  terms: Float[Array, 'b t']
  prior: Float[Array, ' b']

  @property
  def total(self) -> Float[Array, ' b']:
    return self.terms.sum(1) + self.prior


def bound(
  denoise: Denoiser,
  process: Process,
  x0: Float[Array, 'b ...'],
  *,
  cond: Cond,
  keys: Key[Array, ' b'],
  variance: posterior.Variance = posterior.learned,
) -> Bound:
  """Every term of Eq. 4, each with one sample of x_t: one pass of the denoiser for each step of the process.

  Args:
    denoise: the model.
    process: a process with `num_steps`.
    x0: 8-bit images in [-1, 1].
    cond: the images' conditioning.
    keys: keys of the images.
    variance: variance of the model's reverse steps.
  """
  steps = _num_steps(process)

  def body(_, k):
    t = jnp.full(len(x0), (k + 1) / steps, jnp.float32)
    x_t = corrupt(process, x0, image_noise(jax.vmap(lambda key: jax.random.fold_in(key, k))(keys), x0.shape[1:]), t)
    return None, vlb_term(process, denoise(x_t, t, cond), x0, x_t, t, variance=variance)

  _, terms = jax.lax.scan(body, None, jnp.arange(steps))
  return Bound(terms.T, prior_term(process, x0))


def vlb_term(
  process: Process,
  prediction: Prediction,
  x0: Float[Array, 'b ...'],
  x_t: Float[Array, 'b ...'],
  t: Float[Array, ' b'],
  *,
  variance: posterior.Variance = posterior.learned,
) -> Float[Array, ' b']:
  """The term of Eq. 4 that t belongs to, in bits per dimension; t is on the grid of the process."""
  steps = _num_steps(process)
  first = t < 1.5 / steps
  s = jnp.where(first, 0, t - 1 / steps)
  model_mean = posterior.posterior_mean(process, prediction.x0, x_t, t, s)
  model_log_variance = jnp.broadcast_to(jnp.log(variance(process, prediction, t, s)), x0.shape)
  true_mean = posterior.posterior_mean(process, x0, x_t, t, s)
  true_log_variance = expand(posterior.log_small_variance(process, t, s), x0)
  divergence = normal_kl(true_mean, true_log_variance, model_mean, model_log_variance)  # Eq. 1
  surprise = -pixel_log_likelihood(x0, model_mean, model_log_variance)  # Eq. 2
  return _bits(jnp.where(expand(first, x0), surprise, divergence))


def vlb_estimate(
  process: Process,
  prediction: Prediction,
  x0: Float[Array, 'b ...'],
  x_t: Float[Array, 'b ...'],
  t: Float[Array, ' b'],
  weight: Float[Array, ' b'],
) -> Float[Array, '']:
  """The sum of Eqs. 1 and 2 from one term of each image, whose t has the probability 1 / (T weight)."""
  return _num_steps(process) * jnp.mean(weight * vlb_term(process, prediction, x0, x_t, t))


def _num_steps(process: Process) -> int:
  if process.num_steps is None:
    raise ValueError('the variational bound has one term for each step; give the process a number of steps')
  return process.num_steps


def prior_term(process: Process, x0: Float[Array, 'b ...']) -> Float[Array, ' b']:
  """L_T in bits per dimension.  # Eq. 3"""
  one = jnp.ones(len(x0))
  mean, log_variance = process.alpha(one), 2 * jnp.log(process.sigma(one))
  return _bits(normal_kl(expand(mean, x0) * x0, expand(log_variance, x0), jnp.zeros_like(x0), jnp.zeros_like(x0)))


def normal_kl(
  mean_1: Float[Array, '*s'],
  log_variance_1: Float[Array, '*#s'],
  mean_2: Float[Array, '*s'],
  log_variance_2: Float[Array, '*#s'],
) -> Float[Array, '*s']:
  """KL(N_1 || N_2) of each dimension, in nats."""
  difference = log_variance_1 - log_variance_2
  return 0.5 * (-1 - difference + jnp.exp(difference) + (mean_1 - mean_2) ** 2 * jnp.exp(-log_variance_2))


def pixel_log_likelihood(
  x0: Float[Array, '*s'], mean: Float[Array, '*s'], log_variance: Float[Array, '*s']
) -> Float[Array, '*s']:
  """log of a Gaussian's mass in the bin of each 8-bit pixel, in nats; the outermost bins reach to infinity."""
  scale = jnp.exp(-0.5 * log_variance)
  below = jnp.where(x0 < -0.999, 0.0, _normal_cdf((x0 - mean - BIN / 2) * scale))
  above = jnp.where(x0 > 0.999, 1.0, _normal_cdf((x0 - mean + BIN / 2) * scale))
  return jnp.log(jnp.maximum(above - below, 1e-12))


def _normal_cdf(x: Array) -> Array:
  """The approximation of IDDPM's code, kept so that the numbers are the published ones; off by up to 2e-4."""
  return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _bits(nats: Float[Array, 'b ...']) -> Float[Array, ' b']:
  return jnp.mean(nats, axis=tuple(range(1, nats.ndim))) / math.log(2)
