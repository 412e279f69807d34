"""Clipping the predicted data to the range that data has.

(1)  x0' = clip(x0, -limit, limit)
(2)  eps' = (x_t - alpha x0') / sigma, so that x_t = alpha x0' + sigma eps' still holds
(3)  x0' = clip(x0, -s, s) limit/s,   s = max(limit, quantile of |x0| over the image)     (Imagen, Saharia et al. 2022)

Without Eq. 2, eps is the network's own, which DDIM's published code and diffusers' go on with (`keep_eps`).
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxgen.processes import parameterisation
from jaxgen.processes.process import Denoiser, Prediction, Process, expand
from jaxgen.samplers.sampler import Guide
from jaxgen.typing import Array, Cond, Float


def clipped(denoise: Denoiser, process: Process, limit: float | None = 1.0, *, keep_eps: bool = False) -> Denoiser:
  """A denoiser whose x0 stays in [-limit, limit]; the same denoiser if limit is None."""
  if limit is None:
    return denoise
  return _with_x0(denoise, process, lambda x0: jnp.clip(x0, -limit, limit), keep_eps)  # Eq. 1


def thresholded(
  denoise: Denoiser,
  process: Process,
  *,
  quantile: float = 0.995,
  limit: float = 1.0,
  most: float = float('inf'),
  keep_eps: bool = False,
) -> Denoiser:
  """Dynamic thresholding, for pixels under strong guidance: an image that leaves [-limit, limit] is scaled back.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`, usually a guided one.
    process: the process that corrupted x_t.
    quantile: share of an image's values, in [0, 1], that are scaled rather than clipped.
    limit: bound of the data's range.
    most: the largest s of Eq. 3, diffusers' `sample_max_value`; what is beyond it is clipped.
    keep_eps: whether eps stays the network's, without Eq. 2.
  """
  if most < limit:
    raise ValueError(f'most is {most}; it bounds a scale that is at least limit, {limit}')
  if not 0 <= quantile <= 1:
    raise ValueError(f'quantile is {quantile}; it is a share, in [0, 1]: 0.995, not 99.5')

  def threshold(x0: Array) -> Array:
    s = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), quantile, axis=1)
    s = expand(jnp.clip(s, limit, most), x0)
    return jnp.clip(x0, -s, s) * (limit / s)  # Eq. 3

  return _with_x0(denoise, process, threshold, keep_eps)


def _with_x0(denoise: Denoiser, process: Process, change: Callable[[Array], Array], keep_eps: bool) -> Denoiser:
  """A denoiser whose x0 is changed, and whose eps follows."""
  of_x0 = parameterisation.x0(process)

  def changed(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    prediction = denoise(x_t, t, cond)
    if keep_eps:
      return prediction._replace(x0=change(prediction.x0))
    return of_x0.predict(change(prediction.x0), x_t, t)._replace(variance=prediction.variance)  # Eq. 2

  return changed


def clip(limit: float | None = 1.0, *, keep_eps: bool = False) -> Guide:
  """`clipped`, for the `guide` of an objective."""
  return lambda denoise, process, without: clipped(denoise, process, limit, keep_eps=keep_eps)


def threshold(
  *, quantile: float = 0.995, limit: float = 1.0, most: float = float('inf'), keep_eps: bool = False
) -> Guide:
  """`thresholded`, for the `guide` of an objective."""
  options = {'quantile': quantile, 'limit': limit, 'most': most, 'keep_eps': keep_eps}
  return lambda denoise, process, without: thresholded(denoise, process, **options)
