"""A sampler is data: a solver, and the times that it visits.

  Sampler(euler, grids.uniform(50))        Sampler(partial(ddpm, variance=posterior.learned), grids.spaced(250, 1000))

So its times can be read, cut short and refined. A solver is a function, one step rule a file, and one `lax.scan`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxgen.processes.process import Denoiser, Process
from jaxgen.typing import Array, Cond, Float, Key

Times = Float[Array | np.ndarray, ' n']


@runtime_checkable
class Solver(Protocol):
  """Takes images from one time to another, calling the denoiser at each step."""

  def __call__(
    self,
    denoise: Denoiser,
    process: Process,
    x: Float[Array, 'b ...'],
    times: Times,
    *,
    cond: Cond | None = None,
    keys: Key[Array, ' b'] | None = None,
  ) -> Float[Array, 'b ...']:
    """Integrates from `x` at times[0] to times[-1].

    Args:
      denoise: `(x_t, t, cond) -> Prediction`; guidance and clipping wrap it (samplers/guidance.py, clipping.py).
      process: the process that the denoiser was trained to undo.
      x: images at times[0]: sigma(1) times noise if times[0] is 1.
      times: decreasing; see samplers/grids.py.
      cond: conditioning with leading batch axis.
      keys: one for each image; a solver without noise does not use them.
    """
    ...


class Sampler(NamedTuple):
  """How images are sampled.

  Attributes:
    solve: the solver; its options are bound with `functools.partial`.
    times: decreasing times, from 1 to 0 for images from noise.
  """

  solve: Solver
  times: Float[np.ndarray, ' n']


# Names of fields -> the entries of `cond` for their nulls (objectives/conditioning.py); () stands for
# all fields that have a null.
Without = Callable[[Sequence[str]], Cond]

# What wraps a denoiser for sampling, such as `classifier_free(4.0)` or `clip(1.0)`: guidance, clipping, thresholding.
Guide = Callable[[Denoiser, Process, Without], Denoiser]
