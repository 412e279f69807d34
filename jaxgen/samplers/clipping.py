"""Clipping the predicted data to the range that data has.

(1)  x0' = clip(x0, -limit, limit)
(2)  eps' = (x_t - alpha x0') / sigma, so that x_t = alpha x0' + sigma eps' still holds
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxgen.processes import parameterisation
from jaxgen.processes.process import Prediction, Process
from jaxgen.typing import Array, Cond, Float


def clipped(denoise: Callable[..., Prediction], process: Process, limit: float | None) -> Callable[..., Prediction]:
  """A denoiser whose x0 stays in [-limit, limit]; the same denoiser if limit is None."""
  if limit is None:
    return denoise
  of_x0 = parameterisation.x0(process)

  def clip(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    prediction = denoise(x_t, t, cond)
    x0 = jnp.clip(prediction.x0, -limit, limit)  # Eq. 1
    return of_x0.predict(x0, x_t, t)._replace(variance=prediction.variance)  # Eq. 2

  return clip
