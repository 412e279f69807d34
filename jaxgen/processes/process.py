"""A process corrupts data: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 data, t = 1 noise, eps ~ N(0, I).

  (1)  x_t    = alpha(t) x0 + sigma(t) eps
  (2)  snr(t) = alpha(t)^2 / sigma(t)^2
  (3)  alpha'(t), sigma'(t): the rates, by forward differentiation; d x_t/dt = alpha' x0 + sigma' eps

`alpha`, `sigma` and `network_time` take times of any shape, [] and [b] alike, and are defined on all of [0, 1],
also for a process that has T steps: between its grid points t_k = (k + 1)/T it is interpolated.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from jaxgen.typing import Array, Cond, Float, Key

MARGIN = 1e-5  # distance in time from an end where a rate or a quotient is infinite


class Process(NamedTuple):
  """A Gaussian corruption.

  Attributes:
    alpha: `t -> alpha(t)`, how much of the data is left.
    sigma: `t -> sigma(t)`, the standard deviation of the noise.
    network_time: `t ->` the number that a network's time embedding sees.
    num_steps: T of a process with discrete times t_k = (k + 1)/T, k = 0 ... T-1; None if t is continuous.
  """

  alpha: Callable[[Array], Array]
  sigma: Callable[[Array], Array]
  network_time: Callable[[Array], Array]
  num_steps: int | None = None


class Prediction(NamedTuple):
  """The output of a denoiser at x_t; the score, v and the velocity derive from it.

  Attributes:
    x0: the expected data.
    eps: the expected noise, consistent with `x0` by Eq. 1.
    variance: the network's interpolation between the smallest (-1) and the largest (1) variance of a reverse
      step, if it learns one; see processes/posterior.py.
  """

  x0: Float[Array, 'b ...']
  eps: Float[Array, 'b ...']
  variance: Float[Array, 'b ...'] | None = None


Denoiser = Callable[[Array, Array, Cond], Prediction]  # (x_t, t, cond) -> Prediction


def expand(coefficient: Shaped[Array, ' b'], like: Shaped[Array, 'b ...']) -> Shaped[Array, 'b ...']:
  """Appends axes of size 1, so that one number for each image multiplies images."""
  return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - 1))


def sum_per_image(x: Float[Array, 'b ...']) -> Float[Array, ' b']:
  """Sums over every axis but the first."""
  return x.sum(axis=tuple(range(1, x.ndim)))


def corrupt(
  process: Process, x0: Float[Array, 'b ...'], eps: Float[Array, 'b ...'], t: Float[Array, ' b']
) -> Float[Array, 'b ...']:
  """x_t.  # Eq. 1"""
  return expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps


def image_noise(keys: Key[Array, ' b'], shape: tuple[int, ...]) -> Float[Array, 'b ...']:
  """Standard normal noise in which image i depends on its own key only, not on the batch it is in."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def noise_like(x0: Float[Array, 'b ...'], key: Key[Array, '']) -> Float[Array, 'b ...']:
  """Standard normal noise for a batch, of one key for each image."""
  return image_noise(jax.random.split(key, len(x0)), x0.shape[1:])


def log_snr(process: Process, t: Float[Array, '*s']) -> Float[Array, '*s']:
  """log(alpha^2 / sigma^2); +inf where there is no noise, -inf where there is no data.  # Eq. 2"""
  return 2 * (jnp.log(process.alpha(t)) - jnp.log(process.sigma(t)))


def rates(process: Process, t: Float[Array, '*s']) -> tuple[Float[Array, '*s'], Float[Array, '*s']]:
  """alpha'(t) and sigma'(t); sigma' of a VP process grows without bound towards t = 0.  # Eq. 3"""
  ones = jnp.ones_like(t)
  return jax.jvp(process.alpha, (t,), (ones,))[1], jax.jvp(process.sigma, (t,), (ones,))[1]
