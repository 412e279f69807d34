"""Denoisers that are known in closed form, against which samplers and losses are exact.

For data N(m, v), with a = alpha(t), s = sigma(t), and total variance d = a^2 v + s^2:

  (1)  E[x0 | x_t] = m + a v / d (x_t - a m),   E[eps | x_t] = s / d (x_t - a m)
  (2)  Var[x0 | x_t] = v s^2 / d
  (3)  the probability-flow ODE:  x_s = a_s m + sqrt(d_s / d_t) (x_t - a_t m)

In one dimension the ODE keeps the order of the points, so for any data, with F_t the distribution function at time t:

  (4)  F_s(x_s) = F_t(x_t)
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxgen.processes.process import Prediction, expand
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.vp import vp_cosine, vp_linear

PROCESSES = {
  'vp_linear': vp_linear(),
  'vp_linear_1000': vp_linear(1000),
  'vp_cosine': vp_cosine(),
  'vp_cosine_1000': vp_cosine(1000),
  'rectified_flow': rectified_flow(),
}


def compiled(function, *args):
  """The value as numpy, from one compiled program rather than one for each operation."""
  return jax.tree.map(np.asarray, jax.jit(function)(*args))


def gaussian(process, mean, variance):
  """The denoiser of N(mean, variance I); `mean` is a number or a function of cond -> [b].  # Eq. 1"""

  def denoise(x_t, t, cond):
    m = mean(cond) if callable(mean) else jnp.full(t.shape, mean)
    m, a, s = expand(m, x_t), expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
    centred = (x_t - a * m) / (a * a * variance + s * s)
    return Prediction(x0=m + a * variance * centred, eps=s * centred)

  return denoise


def flow(process, mean, variance, x, t, s):
  """Where the probability-flow ODE takes x from t to s.  # Eq. 3"""
  (a_t, s_t), (a_s, s_s) = ((process.alpha(jnp.float32(u)), process.sigma(jnp.float32(u))) for u in (t, s))
  ratio = jnp.sqrt((a_s**2 * variance + s_s**2) / (a_t**2 * variance + s_t**2))
  return a_s * mean + ratio * (x - a_t * mean)


def mixture(process, means, variance):
  """The denoiser of one-dimensional pixels, each from an equal mixture of N(mean_i, variance)."""
  means = jnp.asarray(means, jnp.float32)

  def denoise(x_t, t, cond):
    x, a, s = x_t[..., None], expand(process.alpha(t), x_t)[..., None], expand(process.sigma(t), x_t)[..., None]
    m = means.reshape((1,) * x_t.ndim + (-1,))
    d = a * a * variance + s * s
    weight = jax.nn.softmax(-((x - a * m) ** 2) / (2 * d), axis=-1)
    x0 = (weight * (m + a * variance / d * (x - a * m))).sum(-1)
    eps = (weight * s / d * (x - a * m)).sum(-1)
    return Prediction(x0=x0, eps=eps)

  return denoise


def mixture_flow(process, means, variance, x, t, s):
  """Where the probability-flow ODE takes x from t to s, for a mixture; float64.  # Eq. 4"""
  means = np.asarray(np.float32(means), np.float64)

  def cdf(y, time):
    a, sigma = (float(f(jnp.float64(time))) for f in (process.alpha, process.sigma))
    return stats.norm.cdf((y[..., None] - a * means) / np.sqrt(a * a * variance + sigma**2)).mean(-1)

  wanted, low, high = cdf(x, t), np.full_like(x, -1e3), np.full_like(x, 1e3)
  for _ in range(80):
    middle = (low + high) / 2
    is_low = cdf(middle, s) < wanted
    low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
  return middle
