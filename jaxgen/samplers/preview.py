"""Watching a sampler while it runs, and stopping it, without leaving the device's loop.

A watched denoiser is a denoiser, so it goes to any sampler and under or over any guidance. Over guidance it shows what
the sampler sees; under guidance, the guided one. The callbacks run on the host while the device continues.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jaxgen.processes.process import Denoiser, Prediction
from jaxgen.typing import Array, Cond, Float

Show = Callable[[np.ndarray, np.ndarray], None]  # (t [b], view of x0 [b ...])


def watched(
  denoise: Denoiser,
  show: Show,
  *,
  view: Callable[[Array], Array] = lambda x0: x0,
  go_on: Callable[[], bool] | None = None,
) -> Denoiser:
  """Hands every prediction of x0 to the host.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`.
    show: called on the host with t and x0; over several devices not necessarily in the order of time.
    view: function on the device from x0 to the image that is shown: a decoder, or fewer pixels.
    go_on: called on the host before each call of the network. Once it returns False, the network is skipped and the
      sampler ends at no cost; its return value then means nothing, and the last x0 that was shown is the result.
  """

  def seen(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    prediction = denoise(x_t, t, cond)
    io_callback(_on_host(show), None, t, view(prediction.x0))
    return prediction

  if go_on is None:
    return seen
  ask = lambda: np.bool_(go_on())  # noqa: E731

  def stoppable(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    running = io_callback(ask, jax.ShapeDtypeStruct((), bool))
    shapes = jax.eval_shape(denoise, x_t, t, cond)
    rest = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.cond(running, seen, lambda *_: rest, x_t, t, cond)

  return stoppable


def _on_host(show: Show) -> Callable[[Array, Array], None]:
  return lambda t, x0: show(np.asarray(t), np.asarray(x0))
