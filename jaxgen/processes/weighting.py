"""Weightings of the squared error over time: `(process, t) -> weight`, float32 [b].

An error in one space is an error in any other times a number that depends on t alone; with snr = alpha^2 / sigma^2,

  (1)  |d eps|^2      = snr |d x0|^2
  (2)  |d v|^2        = ((alpha^2 + sigma^2) / sigma)^2 |d x0|^2           (snr + 1 for VP)
  (3)  |d velocity|^2 = ((alpha sigma' - alpha' sigma) / sigma)^2 |d x0|^2  (1 / sigma^2 for rectified flow)

so a weighting depends on the space of the loss. `uniform` is 1 in whatever space the loss is taken. The others are
weights of the *x0* loss, as their papers give them:

  (4)  snr            snr: the plain eps loss, written for x0
  (5)  truncated SNR  max(snr, 1)        (Salimans & Ho 2022)
  (6)  min-SNR        min(snr, gamma)    (Hang et al. 2023)

`on_eps`, `on_v`, `on_velocity` and `on_preconditioned` rewrite a weighting of the x0 loss for a loss taken there:
`on_eps(min_snr(5))` is min(snr, 5)/snr, `on_v(min_snr(5))` is min(snr, 5)/(snr + 1). The SNR is held within e^-20 and
e^20, so every weight is finite at both ends of time.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxgen.processes.process import MARGIN, Process, log_snr, rates
from jaxgen.typing import Array, Float

Weighting = Callable[[Process, Array], Array]

LOG_SNR_LIMIT = 20.0


def uniform(process: Process, t: Float[Array, ' b']) -> Float[Array, ' b']:
  """1 in the space of the loss, whichever it is."""
  return jnp.ones_like(t)


def snr(process: Process, t: Float[Array, ' b']) -> Float[Array, ' b']:
  """A weighting of the x0 loss.  # Eq. 4"""
  return jnp.exp(jnp.clip(log_snr(process, t), -LOG_SNR_LIMIT, LOG_SNR_LIMIT))


def truncated_snr(process: Process, t: Float[Array, ' b']) -> Float[Array, ' b']:
  """A weighting of the x0 loss: at least 1, so that pure noise counts, too.  # Eq. 5"""
  return jnp.maximum(snr(process, t), 1.0)


def min_snr(gamma: float = 5.0) -> Weighting:
  """A weighting of the x0 loss: at most gamma, so that almost clean images do not take over.  # Eq. 6"""
  return lambda process, t: jnp.minimum(snr(process, t), gamma)


def on_eps(weighting: Weighting) -> Weighting:
  """A weighting of the x0 loss, for a loss on eps.  # Eq. 1"""
  return lambda process, t: weighting(process, t) / snr(process, t)


def on_v(weighting: Weighting) -> Weighting:
  """A weighting of the x0 loss, for a loss on v.  # Eq. 2"""

  def weight(process: Process, t: Float[Array, ' b']) -> Float[Array, ' b']:
    a, s = process.alpha(t), process.sigma(t)
    return weighting(process, t) * (s / (a * a + s * s)) ** 2

  return weight


def on_preconditioned(weighting: Weighting, *, data_std: float = 0.5) -> Weighting:
  """A weighting of the x0 loss, for a loss on F of `parameterisation.preconditioned`: times c_out^2."""

  def weight(process: Process, t: Float[Array, ' b']) -> Float[Array, ' b']:
    ratio = 1 / snr(process, t)
    return weighting(process, t) * ratio * data_std**2 / (ratio + data_std**2)

  return weight


def on_velocity(weighting: Weighting) -> Weighting:
  """A weighting of the x0 loss, for a loss on the velocity.  # Eq. 3"""

  def weight(process: Process, t: Float[Array, ' b']) -> Float[Array, ' b']:
    t = jnp.clip(t, MARGIN, 1 - MARGIN)
    a, s = process.alpha(t), process.sigma(t)
    da, ds = rates(process, t)
    return weighting(process, t) * (s / (a * ds - da * s)) ** 2

  return weight
