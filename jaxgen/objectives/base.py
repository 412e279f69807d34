"""Objectives: the losses that are trained, and how to sample. An objective is data, a NamedTuple of pure functions.

The train step knows nothing else of a method: it runs the phases in order, and each phase differentiates
some subtrees of the parameters. A GAN has two phases, a diffusion model one; a regulariser that runs every
16th step is a phase with `every=16`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.conditioning import Condition, Conditioner, unconditional
from jaxgen.processes.parameterisation import Parameterise
from jaxgen.processes.process import Denoiser, Process, image_noise
from jaxgen.samplers import preview
from jaxgen.samplers.ddim_inversion import Invert, ddim_inversion
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.sampler import Guide, Sampler, Without
from jaxgen.typing import Array, Cond, Float, Key

InitFn = Callable[[Array, Any, dict[str, Any]], dict[str, Any]]  # (key, frozen, batch) -> {'params': ..., 'extra': ...}
# (params, frozen, cond, keys) -> images, float32 b h w c in [-1, 1]
SampleFn = Callable[[dict[str, Any], Any, Cond, Array], Array]


@runtime_checkable
class EditFn(Protocol):
  """Edits images."""

  def __call__(
    self, params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b'], *, image: Float[Array, 'b h w c']
  ) -> Float[Array, 'b h w c']: ...


@runtime_checkable
class InpaintFn(Protocol):
  """Fills in images where a mask is 0; it is 1 where a pixel is known."""

  def __call__(
    self,
    params: dict,
    frozen: dict,
    cond: Cond,
    keys: Key[Array, ' b'],
    *,
    image: Float[Array, 'b h w c'],
    mask: Float[Array, 'b h w 1'],
  ) -> Float[Array, 'b h w c']: ...


@runtime_checkable
class InterpolateFn(Protocol):
  """Makes images between two, 0 at the first and 1 at the last."""

  def __call__(
    self, params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b'], *, weight: Float[Array, ' b']
  ) -> Float[Array, 'b h w c']: ...


GenerationFn = SampleFn | EditFn | InpaintFn | InterpolateFn  # those of generation/ take inputs by name


class Aux(NamedTuple):
  """What a loss returns besides its value: scalars to log, and the entries of `state.extra` that it replaces."""

  metrics: Mapping[str, Array] = {}
  extra: Mapping[str, Any] = {}


# (params, state, frozen, batch, key) -> (loss, Aux); `params` is the whole of `state.params`, and the loss is a float32
# scalar, the mean over the batch.
LossFn = Callable[[dict[str, Any], Any, Any, dict[str, Array], Array], tuple[Array, Aux]]


class Phase(NamedTuple):
  """One optimizer update.

  Attributes:
    name: prefix of the metrics, unique among the phases.
    trains: key or keys of `state.params`; those subtrees alone are differentiated, in one pass, and each is updated by
      its own optimizer.
    loss: see LossFn.
    every: the phase runs at steps that are multiples of this (lazy regularisation).
  """

  name: str
  trains: str | tuple[str, ...]
  loss: LossFn
  every: int = 1

  @property
  def keys(self) -> tuple[str, ...]:
    """The keys of `trains`."""
    return (self.trains,) if isinstance(self.trains, str) else self.trains


class Denoising(NamedTuple):
  """The parts of sampling with a denoiser: `sampled` joins them to make images, generation/ joins them for other uses.

  Attributes:
    process: `params -> process` that the denoiser undoes.
    denoiser: `(params, frozen) -> denoise`, without guidance.
    condition: encodes the conditions of the network; see `Conditioner.condition`.
    sampler: solver and times.
    shape: shape of one image's x0, as the denoiser sees it.
    limit: samples are clipped to [-limit, limit]; None for latents.
    guide: wrappers of the denoiser for sampling, the innermost first.
    encode: `(frozen, images) -> x0`.
    decode: `(frozen, x0) -> images`, float32 in [-1, 1].
    show: called on the host with every predicted x0, decoded: samplers/preview.py.
    walk: a sampler whose steps can be taken one at a time and repeated, for inpainting and inversion; None for DDPM at
      the sampler's times.
    predicts: meaning of the network's output, such as `parameterisation.eps`; None where it has no single one.
    noise_std: standard deviation of the first noise; None for the process's at t = 1.
    inverse: finds the noise of an image, as `ddim_inversion` does; None where the denoiser's x0 is the end of a path
      rather than a mean of the data, which does not give the path's direction.
  """

  process: Callable[[dict[str, Any]], Process]
  denoiser: Callable[[dict[str, Any], Any], Denoiser]
  condition: Condition
  sampler: Sampler
  shape: tuple[int, ...]
  limit: float | None
  guide: tuple[Guide, ...] = ()
  encode: Callable[[Any, Array], Array] = lambda frozen, images: images
  decode: Callable[[Any, Array], Array] = lambda frozen, x0: x0
  show: preview.Show | None = None
  walk: Sampler | None = None
  predicts: Parameterise | None = None
  noise_std: float | None = None
  inverse: Invert | None = ddim_inversion


class Objective(NamedTuple):
  """A way to train a generator.

  Attributes:
    init: `(key, frozen, batch) -> {'params': {name: tree}, 'extra': {name: tree}}`; `frozen` and `batch` give shapes.
    phases: the updates of one train step, in order.
    sample: `(params, frozen, cond, keys) -> images`, float32 `b h w c` in [-1, 1]; `params` as in
      `state.params` (usually averaged) with `state.extra`, if there is any, as 'extra'; `cond` the fields of
      `conditioner`; `keys` one for each image.
    denoising: the parts of `sample`, if it denoises, so that images can be edited and watched too.
    conditioner: conditions of a sample.
    networks: Flax modules by their key in params, for exports and for the uses of a GAN's generator.
  """

  init: InitFn
  phases: tuple[Phase, ...]
  sample: SampleFn
  denoising: Denoising | None = None
  conditioner: Conditioner = unconditional
  networks: Mapping[str, nn.Module] = {}


def denoising_of(objective: Objective) -> Denoising:
  """The objective's `denoising`, for training that starts from its denoiser."""
  if objective.denoising is None:
    raise ValueError('this objective has no denoiser to start from; wanted one such as `diffusion`')
  return objective.denoising


def trained_names(objective: Objective) -> tuple[str, ...]:
  """The keys of the parameters that an objective of one phase trains."""
  if len(objective.phases) != 1:
    raise ValueError(f'{len(objective.phases)} phases cannot be trained as one; wanted an objective of a single phase')
  return objective.phases[0].keys


def sampled(d: Denoising) -> SampleFn:
  """Images from noise: what `Objective.sample` is."""

  def sample(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b ...']:
    return sample_from(d, params, frozen, cond, image_noise(split_keys(keys)[0], d.shape), keys)

  return sample


def sample_from(
  d: Denoising,
  params: dict,
  frozen: dict,
  cond: Cond,
  noise: Float[Array, 'b ...'],
  keys: Key[Array, ' b'],
  *,
  beside: Cond | None = None,
) -> Float[Array, 'b ...']:
  """Images from given standard normal noise, with the other randomness of `keys`.

  `beside` has entries of the network's condition that no field stands for, such as a mask.
  """
  process, (_, step_keys, encode_keys) = d.process(params), split_keys(keys)
  encoded, without = d.condition(params, frozen, cond, encode_keys)
  denoise = guided_denoiser(d, params, frozen, without)
  x = (process.sigma(jnp.float32(1)) if d.noise_std is None else d.noise_std) * noise
  encoded = {**encoded, **(beside or {})}
  x0 = d.sampler.solve(denoise, process, x, d.sampler.times, cond=encoded, keys=step_keys)
  return decoded(d, frozen, x0)


def guided_denoiser(d: Denoising, params: dict, frozen: dict, without: Without) -> Denoiser:
  """The denoiser that a sampler is given: guided, and watched if `show` is set."""
  denoise, process = d.denoiser(params, frozen), d.process(params)
  for guide in d.guide:
    denoise = guide(denoise, process, without)
  return denoise if d.show is None else preview.watched(denoise, d.show, view=partial(decoded, d, frozen))


def decoded(d: Denoising, frozen: dict, x0: Array) -> Array:
  """Images of a sampler's x0."""
  return d.decode(frozen, x0 if d.limit is None else jnp.clip(x0, -d.limit, d.limit))


def split_keys(keys: Key[Array, ' b']) -> tuple[Key[Array, ' b'], Key[Array, ' b'], Key[Array, ' b']]:
  """Keys of the initial noise, of the sampler's steps and of the encoder."""
  noise_keys, step_keys, encode_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
  return noise_keys, step_keys, encode_keys


def walk_of(d: Denoising) -> Sampler:
  """The sampler of inpainting and inversion."""
  return Sampler(ddpm, np.asarray(d.sampler.times, np.float32)) if d.walk is None else d.walk
