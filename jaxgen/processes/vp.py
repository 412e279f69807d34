"""Variance-preserving processes: alpha^2 + sigma^2 = 1, so L(t) = log alpha(t)^2 determines both.

  (1)  alpha = exp(L / 2),  sigma = sqrt(1 - exp L)

Continuous:
  (2)  linear  L = -(b0 t + (b1 - b0) t^2 / 2), b0 = 0.1, b1 = 20               (Song et al. 2021)
  (3)  cosine  alpha = cos(d + u) / cos(u),  sigma = sqrt(sin(d) sin(d + 2u)) / cos(u),
               d = (pi/2) t / (1 + e), u = (pi/2) e / (1 + e), e = 0.008        (Nichol & Dhariwal 2021)

Discrete, with T steps t_k = (k + 1)/T, k = 0 ... T-1; the network sees k:
  (4)  L(t_k) = sum_{j <= k} log(1 - beta_j), in float64;  L(0) = 0
  (5)  linear  beta = linspace(1e-4, 0.02, T) * 1000/T                          (Ho et al. 2020)
  (6)  cosine  beta_k = min(1 - f(t_k) / f(t_k - 1/T), 0.999), f(t) = cos^2(d + u)
  (7)  sigmoid beta = b0 + (b1 - b0) sigmoid(linspace(-6, 6, T)),  b0 = 1e-4, b1 = 0.02   (GeoDiff, Xu et al. 2022)

  (8)  zero terminal SNR, of any: alpha_k' = alpha_1 (alpha_k - alpha_T) / (alpha_1 - alpha_T), so that the last beta is
       1 and nothing of the data is left (Lin et al. 2023); a network then predicts v or x0

Between grid points L is linear in t, which is a constant rate of noise; where the last beta is 1, alpha is linear in
the last step instead. Eqs. 1 (expm1) and 3 (the product of sines instead of 1 - alpha^2) keep their relative precision
where sigma is small.

Differs from DDPM and IDDPM: there k counts from 0 and k = 0 is already noisy; here t = 0 is clean, t_0 = 1/T.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.processes.process import Process
from jaxgen.typing import Array, Float

TIME_SCALE = 1000.0  # the network's time for a continuous t: the range of DDPM's k
OFFSET = 0.008  # e of Eq. 3


def vp_linear(num_steps: int | None = None, *, beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
  """Linear beta: continuous (Eq. 2), or DDPM's with `num_steps` steps (Eq. 5)."""
  if num_steps is not None:
    return from_betas(np.linspace(beta_min, beta_max, num_steps) / num_steps)

  def log_alpha_bar(t: Array) -> Array:
    return -(beta_min * t + 0.5 * (beta_max - beta_min) * t * t)  # Eq. 2

  return Process(
    alpha=lambda t: _alpha(log_alpha_bar(t)),
    sigma=lambda t: _sigma(log_alpha_bar(t)),
    network_time=lambda t: TIME_SCALE * t,
  )


def vp_cosine(num_steps: int | None = None) -> Process:
  """Cosine: continuous (Eq. 3), or IDDPM's with `num_steps` steps (Eq. 6)."""
  rate, u = 0.5 * math.pi / (1 + OFFSET), 0.5 * math.pi * OFFSET / (1 + OFFSET)
  if num_steps is not None:
    f = np.cos(rate * np.arange(num_steps + 1) / num_steps + u) ** 2
    return from_betas(np.minimum(1 - f[1:] / f[:-1], 0.999))  # Eq. 6

  def sigma(t: Array) -> Array:
    return jnp.sqrt(jnp.maximum(jnp.sin(rate * t) * jnp.sin(rate * t + 2 * u), 0)) / math.cos(u)

  return Process(  # Eq. 3
    alpha=lambda t: jnp.maximum(jnp.cos(rate * t + u), 0) / math.cos(u),
    sigma=sigma,
    network_time=lambda t: TIME_SCALE * t,
  )


def vp_sigmoid(num_steps: int, *, beta_min: float = 1e-4, beta_max: float = 0.02) -> Process:
  """Betas that rise by a sigmoid (Eq. 7)."""
  return from_betas(beta_min + (beta_max - beta_min) / (1 + np.exp(-np.linspace(-6.0, 6.0, num_steps))))


def zero_terminal_snr(betas: Float[np.ndarray, ' k']) -> Float[np.ndarray, ' k']:
  """Other betas, for `from_betas`, whose process ends in noise alone.  # Eq. 8"""
  root = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
  alpha_bar = (root[0] * (root - root[-1]) / (root[0] - root[-1])) ** 2
  return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def from_betas(betas: Float[np.ndarray, ' k']) -> Process:
  """The discrete process of given betas.

  Args:
    betas: the variance each step adds, float64, in (0, 1); their number is T. The last may be 1.
  """
  num_steps, terminal = len(betas), bool(betas[-1] == 1)
  if not np.all((betas > 0) & (betas < 1)) and not (terminal and np.all((betas[:-1] > 0) & (betas[:-1] < 1))):
    raise ValueError(
      f'betas go from {betas.min():.3g} to {betas.max():.3g} in {num_steps} steps; each must be in (0, 1): '
      'use more steps or a smaller beta_max'
    )
  logs = np.cumsum(np.log1p(-betas[: num_steps - terminal]))  # Eq. 4
  table = np.concatenate([[0.0], logs, logs[-1:] if terminal else []]).astype(np.float32)

  def position(t: Array) -> Array:
    """T t, exact on the grid although t is rounded to float32."""
    i = jnp.clip(t * num_steps, 0, num_steps)
    nearest = jnp.round(i)
    snapped = jnp.where(jnp.abs(i - nearest) < 1e-6 * num_steps, nearest, i)
    return i + jax.lax.stop_gradient(snapped - i)

  def log_alpha_bar(t: Array) -> Array:
    i = position(t)
    left = jnp.clip(jnp.floor(i), 0, num_steps - 1).astype(jnp.int32)
    at = jnp.asarray(table)
    inner = at[left] + (i - left) * (at[left + 1] - at[left])
    return jnp.where(left == num_steps - 1, at[left] + 2 * jnp.log1p(left - i), inner) if terminal else inner

  return Process(
    alpha=lambda t: _alpha(log_alpha_bar(t)),
    sigma=lambda t: _sigma(log_alpha_bar(t)),
    network_time=lambda t: jnp.maximum(position(t) - 1, 0),
    num_steps=num_steps,
  )


def _alpha(log_alpha_bar: Array) -> Array:
  return jnp.exp(0.5 * log_alpha_bar)  # Eq. 1


def _sigma(log_alpha_bar: Array) -> Array:
  return jnp.sqrt(-jnp.expm1(log_alpha_bar))  # Eq. 1
