"""TrigFlow (Lu & Song 2024): data turn into noise of their own standard deviation d along an arc.

  (1)  alpha(t) = cos(pi t / 2),   sigma(t) = d sin(pi t / 2)
  (2)  training:  log(d tan(pi t / 2)) ~ N(mean, std^2)

Its network is that of `parameterisation.preconditioned(process, data_std=d)`, which sees x_t / d.

Differs from Lu & Song: their time is the angle, pi t / 2, and their network's output has the other sign.
"""

import math

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Process
from jaxgen.processes.times import Draw, TimeSampler, independent
from jaxgen.typing import Array


def trig_flow(*, data_std: float = 0.5, time_scale: float = 100.0) -> Process:
  """Eq. 1.

  Args:
    data_std: d, the standard deviation of the data.
    time_scale: the network sees `time_scale * t`; a smaller one makes it smoother in time, which sCM differentiates.
  """
  return Process(
    alpha=lambda t: jnp.maximum(jnp.cos(0.5 * math.pi * t), 0),  # float32 takes t = 1 past the angle of 0
    sigma=lambda t: data_std * jnp.sin(0.5 * math.pi * t),
    network_time=lambda t: time_scale * t,
  )


def log_normal(mean: float = -1.0, std: float = 1.4, *, data_std: float = 0.5, draw: Draw = independent) -> TimeSampler:
  """Eq. 2."""

  def times(key: Array, batch_size: int) -> Array:
    ratio = jnp.exp(mean + std * jax.scipy.special.ndtri(draw(key, batch_size))) / data_std
    return jnp.arctan(ratio) * (2 / math.pi)

  return times
