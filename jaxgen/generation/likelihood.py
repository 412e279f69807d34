"""The exact likelihood of data under a denoiser, by the probability-flow ODE (Song et al. 2021, appendix D.2).

With n = sqrt(alpha^2 + sigma^2), the angle phi = atan2(sigma, alpha) and u = x_t / n, the ODE of every process is

  (1)  du/dphi = v,   v = cos(phi) eps - sin(phi) x0           of the denoiser, at x_t = n u

which is regular at both ends of time, and the density of u moves with it by

  (2)  log p_0(u_0) = log N(u_1; 0, 1) + integral of div v dphi
  (3)  log p(x0) = log p_0(u_0) - D log n_0
  (4)  div v = E[w^T (dv/du) w],  w of independent signs        (Hutchinson; exact where dv/du is diagonal)

Data are images of 8 bits: noise of one bin's width makes them continuous, and the density of a bin is its mass,

  (5)  bits per dimension = -log2 p(x0 + bin w) / D - log2(bin),   bin = 2/255, w ~ U[-1/2, 1/2]
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.layers import attention
from jaxgen.objectives.diffusion.vlb import BIN
from jaxgen.processes.process import Denoiser, Process, sum_per_image
from jaxgen.typing import Array, Cond, Float, Key


def log_likelihood(
  denoise: Denoiser,
  process: Process,
  x0: Float[Array, 'b ...'],
  *,
  times: Float[np.ndarray, ' n'],
  cond: Cond,
  keys: Key[Array, ' b'],
  probes: int = 1,
) -> Float[Array, ' b']:
  """log p(x0) in nats, Eqs. 1 to 4 by Heun's method.

  Args:
    denoise: the model; it is differentiated in forward mode.
    process: any process.
    x0: continuous data.
    times: a sampler's grid, from 1 to 0; it is walked backwards.
    cond: the images' conditioning.
    keys: keys of the images' probes.
    probes: w of Eq. 4 for each image; more lower the variance of the estimate, never its mean.
  """
  draw = lambda key: jax.random.rademacher(key, (probes, *x0.shape[1:]), jnp.float32)  # noqa: E731
  signs = jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)  # probes b ...
  grid = jnp.asarray(np.asarray(times, np.float32)[::-1])

  def rate(u: Array, t: Array) -> tuple[Array, Array]:
    """v and its divergence."""
    a, s = process.alpha(t), process.sigma(t)
    n = jnp.sqrt(a * a + s * s)

    def v(u: Array) -> Array:
      prediction = denoise(n * u, jnp.full(len(u), t), cond)
      return (a * prediction.eps - s * prediction.x0) / n  # Eq. 1

    with attention.unfused():
      value, derivative = jax.linearize(v, u)
    each = jax.lax.map(lambda w: sum_per_image(w * derivative(w)), signs)
    return value, each.mean(0)  # Eq. 4

  def step(carry: tuple[Array, Array], ends: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
    u, total = carry
    t, later = ends
    width = _angle(process, later) - _angle(process, t)
    v, divergence = rate(u, t)
    v_later, divergence_later = rate(u + width * v, later)
    total += 0.5 * width * (divergence + divergence_later)
    return (u + 0.5 * width * (v + v_later), total), None

  n_0 = jnp.sqrt(process.alpha(grid[0]) ** 2 + process.sigma(grid[0]) ** 2)
  start = (x0 / n_0, jnp.zeros(len(x0)))
  (u, total), _ = jax.lax.scan(step, start, (grid[:-1], grid[1:]))
  dimensions = math.prod(x0.shape[1:])
  prior = -0.5 * (sum_per_image(u * u) + dimensions * math.log(2 * math.pi))
  return prior + total - dimensions * jnp.log(n_0)  # Eqs. 2 and 3


def bits_per_dimension(
  denoise: Denoiser,
  process: Process,
  x0: Float[Array, 'b ...'],
  *,
  times: Float[np.ndarray, ' n'],
  cond: Cond,
  keys: Key[Array, ' b'],
  probes: int = 1,
) -> Float[Array, ' b']:
  """Bits per dimension of 8-bit images in [-1, 1].  # Eq. 5"""
  noise_keys, probe_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  within = jax.vmap(lambda key: jax.random.uniform(key, x0.shape[1:], minval=-0.5, maxval=0.5))(noise_keys)
  nats = log_likelihood(denoise, process, x0 + BIN * within, times=times, cond=cond, keys=probe_keys, probes=probes)
  return -nats / (math.log(2) * math.prod(x0.shape[1:])) - math.log2(BIN)


def _angle(process: Process, t: Array) -> Array:
  return jnp.arctan2(process.sigma(t), process.alpha(t))
