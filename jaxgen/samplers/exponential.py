"""Exponential integrators of the probability-flow ODE, which DPM-Solver, DPM-Solver++ and UniPC all are.

With l = log(alpha/sigma), h = l_s - l_t > 0 and tau = l - l_t, the ODE is linear in x but for the network's x0 or eps:

  (1)  x_s = sigma_s/sigma_t x_t + alpha_s int_0^h e^(tau - h) x0(tau) d tau                                    (data)
  (2)  x_s = alpha_s/alpha_t x_t - sigma_s int_0^h e^(h - tau) eps(tau) d tau                                  (noise)

A constant x0 or eps makes both DDIM, x_s = alpha_s x0 + sigma_s eps. A polynomial through the predictions f_j at tau =
r_j h, and f at tau = 0, adds

  (3)  c sum_j w_j (f_j - f),   c = alpha_s (data), -sigma_s (noise),   w_j = int_0^h e^(-+(h - tau)) p_j(tau) d tau
  (4)  p_j(tau) = (tau/h)/r_j prod_{i != j} (tau/h - r_i)/(r_j - r_i)
  (5)  m_k = int_0^h e^(-+(h - tau)) (tau/h)^k d tau = k! h phi_{k+1}(-+h)
  (6)  phi_0(z) = e^z,  phi_k(z) = z phi_{k+1}(z) + 1/k!

Nodes r_j < 0 are steps of the past (multistep), 0 < r_j < 1 lie inside the step (singlestep), r_j = 1 is its end (a
corrector). One node has cheaper weights of the same order, which DPM-Solver and UniPC are published with:

  (7)  w = B(h)/(2 r):   bh1  B = h,   bh2  B = m_0

l is infinite at sigma = 0 and at alpha = 0, and float32 is imprecise close to them. A step that touches |l| >
LIMIT is DDIM's, which needs no l.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Prediction, Process, log_snr
from jaxgen.typing import Array, Bool, Float

LIMIT = 8.0  # largest |log(alpha/sigma)|: EDM's sigmas from 0.002 to 80 are inside
TERMS = 24  # terms of the series of phi: more than float64 can see for |z| < 2


class Space(NamedTuple):
  """What is interpolated: Eq. 1 or Eq. 2.

  Attributes:
    of: picks it from a prediction.
    sign: sign of h in the exponents of Eqs. 3 and 5.
    factor: `(alpha_s, sigma_s) -> c` of Eq. 3.
  """

  of: Callable[[Prediction], Array]
  sign: float
  factor: Callable[[Array, Array], Array]


data = Space(of=lambda prediction: prediction.x0, sign=-1.0, factor=lambda alpha, sigma: alpha)
noise = Space(of=lambda prediction: prediction.eps, sign=1.0, factor=lambda alpha, sigma: -sigma)

Second = Callable[[Array, Array], Array]  # (h, m_0) -> B


def bh1(h: Float[Array, '*s'], m_0: Float[Array, '*s']) -> Float[Array, '*s']:
  """Eq. 7."""
  return h


def bh2(h: Float[Array, '*s'], m_0: Float[Array, '*s']) -> Float[Array, '*s']:
  """Eq. 7."""
  return m_0


def half_log_snr(process: Process, t: Float[Array, '*s']) -> Float[Array, '*s']:
  """log(alpha/sigma), the l of this module."""
  return log_snr(process, t) / 2


def time_of(
  process: Process, l: Float[Array, '*s'], earliest: Float[Array, '*s'], latest: Float[Array, '*s']
) -> Float[Array, '*s']:
  """The time in [earliest, latest] at which log(alpha/sigma) is `l`, by bisection to the last digit."""

  def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = ends
    middle = (low + high) / 2
    is_earlier = half_log_snr(process, middle) < l  # log(alpha/sigma) falls with time
    return jnp.where(is_earlier, low, middle), jnp.where(is_earlier, middle, high)

  low, high = jax.lax.fori_loop(0, 64, halve, (earliest, latest))
  return (low + high) / 2


def regular(l: Float[Array, ' n']) -> Bool[Array, ' n-1']:
  """Which steps have a length h > 0 between two l that are within LIMIT."""
  inside = jnp.abs(l) <= LIMIT
  return inside[:-1] & inside[1:] & (l[1:] > l[:-1])


def weights(
  h: Float[Array, ' n'], nodes: Sequence[Float[Array, ' n']], sign: float, second: Second | None = None
) -> list[Float[Array, ' n']]:
  """w of Eq. 3 for each node.

  Args:
    h: lengths of the steps.
    nodes: the r_j, different from each other and from 0.
    sign: -1 for data, 1 for noise.
    second: B of Eq. 7, if there is a single node and Eq. 7 should not be exact.
  """
  m = moments(h, len(nodes) + 1, sign)
  if second is not None and len(nodes) == 1:
    return [second(h, m[0]) / (2 * nodes[0])]  # Eq. 7
  found = []
  for j, r in enumerate(nodes):
    powers, divisor = [jnp.ones_like(h)], r  # coefficients of p_j, from (tau/h)^1 upwards
    for other in (*nodes[:j], *nodes[j + 1 :]):
      powers = [below - other * same for same, below in zip([*powers, 0.0], [0.0, *powers], strict=True)]
      divisor = divisor * (r - other)
    found.append(sum((p * m[k + 1] for k, p in enumerate(powers)), jnp.zeros_like(h)) / divisor)  # Eqs. 3, 4
  return found


def moments(h: Float[Array, '*s'], count: int, sign: float) -> list[Float[Array, '*s']]:
  """m_0 ... m_(count - 1).  # Eq. 5"""
  return [math.factorial(k) * h * phi for k, phi in enumerate(phis(sign * h, count))]


def phis(z: Float[Array, '*s'], count: int) -> list[Float[Array, '*s']]:
  """phi_1 ... phi_count, with full relative precision for small z.  # Eq. 6"""
  is_small = jnp.abs(z) < 2
  small, large = jnp.where(is_small, z, 0.0), jnp.where(is_small, 2.0, z)
  top = jnp.zeros_like(z)
  for j in reversed(range(TERMS)):
    top = top * small + 1 / math.factorial(j + count)
  series = [top]
  recursion = [jnp.expm1(large) / large]
  for k in range(1, count):
    series.insert(0, small * series[0] + 1 / math.factorial(count - k))
    recursion.append((recursion[-1] - 1 / math.factorial(k)) / large)
  return [jnp.where(is_small, a, b) for a, b in zip(series, recursion, strict=True)]


def past_weights(
  l: Float[Array, ' n'],
  order: int,
  sign: float,
  *,
  ends: tuple[Float[Array, ''], ...] = (),
  stretch: float = 1.0,
  second: Second | None = None,
  lower_final: bool = False,
) -> Float[Array, 'n-1 m']:
  """The weights of a multistep method: one row for each step, first of `ends`, then of the order - 1 last predictions.

  The order rises from 1 as predictions become available. A past beyond LIMIT or a step of length 0 is not available,
  and a step that is not regular has zero weights.

  Args:
    l: log(alpha/sigma) at the n times.
    order: 1 to 3; of the predictor, if there are no `ends`.
    sign: -1 for data, 1 for noise.
    ends: nodes that are always there: (1,) for a corrector.
    stretch: multiplies h in the exponents, not in the nodes: 1 for an ODE, more for an SDE.
    second: B of Eq. 7.
    lower_final: the order falls to 1 towards the last step, as it rises from 1 at the first.
  """
  is_regular, steps = regular(l), jnp.arange(len(l) - 1)
  h = jnp.where(is_regular, l[1:] - l[:-1], 1.0)
  nodes = [jnp.broadcast_to(end, h.shape) for end in ends]
  available = [is_regular for _ in ends]
  for back in range(1, order):
    there = jnp.maximum(steps - back, 0)
    step_was = is_regular & (steps >= back) & is_regular[there]
    if lower_final:
      step_was &= steps < len(steps) - back
    available.append(step_was & available[-1] if available else step_was)
    nodes.append(jnp.where(available[-1], (l[there] - l[:-1]) / h, -float(back)))
  used = sum((a.astype(jnp.int32) for a in available), jnp.zeros_like(steps))
  table = jnp.zeros((len(nodes), len(steps)), l.dtype)
  for count in range(1, len(nodes) + 1):
    row = weights(stretch * h, nodes[:count], sign, second)
    row = jnp.stack([*row, *[jnp.zeros_like(h)] * (len(nodes) - count)])
    table = jnp.where(jnp.broadcast_to(used == count, table.shape), row, table)
  return table.T


def check_order(order: int, sampler: str) -> None:
  """Orders 1 to 3 are known."""
  if order not in (1, 2, 3):
    raise ValueError(f'{sampler} has orders 1, 2 and 3, got order={order}')
