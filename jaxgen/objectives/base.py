"""What is learned: an objective is data, a NamedTuple of pure functions.

The train step knows nothing else of a method: it runs the phases in order, and each phase differentiates
one subtree of the parameters. A GAN has two phases, a diffusion model one; a regulariser that runs every
16th step is a phase with `every=16`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxgen.processes.process import Prediction, Process
from jaxgen.samplers.ddim_inversion import ddim_inversion
from jaxgen.samplers.ddpm import ddpm
from jaxgen.typing import Array


class Aux(NamedTuple):
  """What a loss says besides its value: scalars to log, and the entries of `state.extra` it replaces."""

  metrics: Mapping[str, Array] = {}
  extra: Mapping[str, Any] = {}


class Phase(NamedTuple):
  """One optimizer update.

  Attributes:
    name: prefix of the metrics, unique among the phases.
    trains: key of `state.params`; only that subtree is differentiated and updated.
    loss: `(params, state, frozen, batch, key) -> (loss, Aux)`; `params` is the whole of `state.params`, and
      the loss is a float32 scalar, the mean over the batch.
    every: the phase runs at steps that are multiples of this (lazy regularisation).
  """

  name: str
  trains: str
  loss: Callable[..., tuple[Array, Aux]]
  every: int = 1


class Denoising(NamedTuple):
  """How images are drawn with a denoiser, in parts, for objectives/drawing.py.

  Attributes:
    process: `params ->` what the denoiser undoes.
    denoiser: `(params, frozen) -> denoise`, without guidance.
    condition: of a batch's entries, those that the network sees.
    sampler: `(denoise, *, process, x, times, cond, keys) -> x0`; a partial that knows its times, if images are to be
      made in other ways than from noise.
    shape: of what the denoiser sees of one image.
    limit: x0 is held in [-limit, limit]; None for latents.
    guide: denoiser to denoiser.
    encode: `(frozen, images) -> x0`.
    decode: `(frozen, x0) -> images`, float32 in [-1, 1].
    show: sees every predicted x0, decoded, on the host: samplers/preview.py.
    walk: a sampler whose steps may be taken one by one, and again: what inpainting goes by.
    inverse: finds the noise of an image, as `ddim_inversion` does; None where the denoiser's x0 is the end of a path
      rather than a mean of the data, so that nothing tells the path's direction.
    walk_times: of these two, for samplers of too few steps to walk by; None for the sampler's.
  """

  process: Callable[[dict[str, Any]], Process]
  denoiser: Callable[..., Callable[..., Prediction]]
  condition: Callable[[dict[str, Any]], dict[str, Any]]
  sampler: Callable[..., Array]
  shape: tuple[int, ...]
  limit: float | None
  guide: Callable[[Callable[..., Prediction]], Callable[..., Prediction]] = lambda denoise: denoise
  encode: Callable[[Any, Array], Array] = lambda frozen, images: images
  decode: Callable[[Any, Array], Array] = lambda frozen, x0: x0
  show: Callable[..., None] | None = None
  walk: Callable[..., Array] = ddpm
  inverse: Callable[..., Array] | None = ddim_inversion
  walk_times: Any = None


class Objective(NamedTuple):
  """A way to learn a generator.

  Attributes:
    init: `(key, batch) -> {'params': {name: tree}, 'extra': {name: tree}}`; `batch` gives the shapes.
    phases: the updates of one train step, in order.
    sample: `(params, frozen, cond, keys) -> images`, float32 `b h w c` in [-1, 1]; `params` as in
      `state.params` (usually averaged) with `state.extra`, if there is any, as 'extra'; `keys` one for each image.
    denoising: what `sample` is made of, if it denoises, so that images can be edited and watched too.
  """

  init: Callable[..., dict[str, Any]]
  phases: tuple[Phase, ...]
  sample: Callable[..., Array]
  denoising: Denoising | None = None
