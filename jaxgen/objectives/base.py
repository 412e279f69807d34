"""What is learned: an objective is data, a NamedTuple of pure functions.

The train step knows nothing else of a method: it runs the phases in order, and each phase differentiates
one subtree of the parameters. A GAN has two phases, a diffusion model one; a regulariser that runs every
16th step is a phase with `every=16`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.processes.process import Prediction, Process, image_noise
from jaxgen.samplers import preview
from jaxgen.samplers.ddim_inversion import ddim_inversion
from jaxgen.samplers.ddpm import ddpm
from jaxgen.typing import Array, Cond, Float, Key

SampleFn = Callable[..., Array]  # (params, frozen, cond, keys) -> images, float32 b h w c in [-1, 1]


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
  """How a denoiser makes images, in parts: `sampled` puts them together, and generation/ puts them together otherwise.

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


def sampled(d: Denoising) -> SampleFn:
  """Images from noise: what `Objective.sample` is."""

  def sample(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    noise_keys, step_keys = split_keys(keys)
    return sample_from(d, params, frozen, cond, image_noise(noise_keys, d.shape), step_keys)

  return sample


def sample_from(
  d: Denoising, params: dict, frozen: dict, cond: Cond, noise: Float[Array, 'b ...'], keys: Key[Array, ' b']
) -> Float[Array, 'b h w c']:
  """Images from given standard normal noise; `keys` are those of the sampler's steps."""
  process = d.process(params)
  x = process.sigma(jnp.float32(1)) * noise
  x0 = d.sampler(guided_denoiser(d, params, frozen), process=process, x=x, cond=d.condition(cond), keys=keys)
  return decoded(d, frozen, x0)


def guided_denoiser(d: Denoising, params: dict, frozen: dict) -> Callable[..., Prediction]:
  """The denoiser that a sampler is given: guided, and watched if `show` is set."""
  denoise = d.guide(d.denoiser(params, frozen))
  return denoise if d.show is None else preview.watched(denoise, d.show, view=partial(decoded, d, frozen))


def decoded(d: Denoising, frozen: dict, x0: Array) -> Array:
  """Images of a sampler's x0."""
  return d.decode(frozen, x0 if d.limit is None else jnp.clip(x0, -d.limit, d.limit))


def split_keys(keys: Key[Array, ' b']) -> tuple[Key[Array, ' b'], Key[Array, ' b']]:
  """Keys of the initial noise and keys of the sampler's steps."""
  noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  return noise_keys, step_keys


def sampler_times(d: Denoising) -> np.ndarray:
  """The times of the sampler."""
  if not isinstance(d.sampler, partial) or 'times' not in d.sampler.keywords:
    raise ValueError("the sampler's times are not known: build the objective with sampler=partial(..., times=grid)")
  return np.asarray(d.sampler.keywords['times'], np.float32)


def walk_times(d: Denoising) -> np.ndarray:
  """The times of `walk` and `inverse`."""
  return sampler_times(d) if d.walk_times is None else np.asarray(d.walk_times, np.float32)
