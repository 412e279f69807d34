"""LMS, the linear multistep method of the probability-flow ODE in nu = sigma/alpha, y = x/alpha: d y = eps d nu.

eps is the polynomial through the predictions of the last steps, integrated exactly (Crowson's k-diffusion; as
"rho Adams-Bashforth" Zhang & Chen 2023, DEIS):

  (1)  x_s = alpha_s x0 + sigma_s eps + alpha_s (nu_s - nu_t) sum_j w_j (eps_j - eps)
  (2)  w_j = int_0^1 prod_{i != j} (u - r_i)/(r_j - r_i) du,   r_j = (nu_j - nu_t)/(nu_s - nu_t),   r_0 = 0

The order rises from 1 as predictions become available; those made where alpha = 0 are never used. DEIS in log nu is
`dpm_multistep(space=noise, second=None)`.
"""

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key

_GAUSS = ((0.5 - 0.75**0.5 / 3, 0.5), (0.5 + 0.75**0.5 / 3, 0.5))  # points and weights, exact up to degree 3


def lms(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  order: int = 4,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], one network call a step.

  Args:
    order: 1 to 4.
  """
  if order not in (1, 2, 3, 4):
    raise ValueError(f'lms has orders 1 to 4, got order={order}')
  times = jnp.asarray(times)
  alpha, sigma = process.alpha(times), process.sigma(times)
  weights = alpha[1:, None] * _weights(alpha, sigma, order)

  def step(carry: tuple[Array, tuple[Array, ...]], at: tuple[Array, ...]) -> tuple[tuple, None]:
    (x, past), (t, of_x0, of_eps, weights) = carry, at
    prediction = denoise(x, jnp.full(x.shape[:1], t), cond or {})
    x = of_x0 * prediction.x0 + of_eps * prediction.eps
    for j, before in enumerate(past):
      x += weights[j] * (before - prediction.eps)  # Eq. 1
    return (x, (prediction.eps, *past)[: order - 1]), None

  past = (jnp.zeros_like(x),) * (order - 1)
  return jax.lax.scan(step, (x, past), (times[:-1], alpha[1:], sigma[1:], weights))[0][0]


def _weights(alpha: Float[Array, ' n'], sigma: Float[Array, ' n'], order: int) -> Float[Array, 'n-1 m']:
  """(nu_s - nu_t) w_j of Eq. 2 for the order - 1 last predictions, a row for each step."""
  nu, steps = sigma / jnp.maximum(alpha, 1e-20), jnp.arange(len(alpha) - 1)
  h = nu[1:] - nu[:-1]
  moves = jnp.where(h == 0, -1.0, h)
  nodes, count = [jnp.zeros_like(h)], jnp.ones_like(steps)
  for back in range(1, order):
    there = jnp.maximum(steps - back, 0)
    usable = (steps >= back) & (alpha[there] > 0) & (nu[there] > nu[there + 1]) & (count == back)
    nodes.append(jnp.where(usable, (nu[there] - nu[:-1]) / moves, -float(back)))
    count += usable
  table = jnp.zeros((order, len(steps)), h.dtype)
  for used in range(2, order + 1):
    rows = [_integral(nodes[:used], j) for j in range(used)]
    rows = jnp.stack([*rows, *[jnp.zeros_like(h)] * (order - used)])
    table = jnp.where(jnp.broadcast_to(count == used, table.shape), rows, table)
  return (h[None] * table[1:]).T


def _integral(nodes: list[Float[Array, ' n']], j: int) -> Float[Array, ' n']:
  """w_j of Eq. 2 through these nodes."""
  total = jnp.zeros_like(nodes[0])
  for u, weight in _GAUSS:
    product = weight * jnp.ones_like(total)
    for i, r in enumerate(nodes):
      product = product if i == j else product * (u - r) / (nodes[j] - r)
    total += product
  return total
