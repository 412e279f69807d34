"""Ways to draw images with a denoiser: from noise, from images, from parts of images, between two noises.

Each is a function like `Objective.sample`: `(params, frozen, cond, keys) -> images`, images in [-1, 1] and one key for
each. What it needs of an image beside its condition are entries of `cond`, which the network does not see:

  IMAGE   float b h w c in [-1, 1], the image to change
  MASK    float b h w 1, 1 where a pixel is known and 0 where it is wanted
  WEIGHT  float b, from 0 at one noise to 1 at the other

The methods are those of samplers/editing.py and samplers/ddim_inversion.py.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import Denoising
from jaxgen.processes.process import Prediction, image_noise
from jaxgen.samplers import editing, grids, preview
from jaxgen.samplers.ddim import ddim
from jaxgen.typing import Array, Cond, Float, Key

IMAGE, MASK, WEIGHT = 'edited_image', 'edited_mask', 'edited_weight'
Draw = Callable[..., Array]


def sampled(d: Denoising) -> Draw:
  """From noise: what `Objective.sample` is."""

  def draw(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    noise_keys, step_keys = _split(keys)
    return _run(d, params, frozen, cond, image_noise(noise_keys, d.shape), step_keys)

  return draw


def edited(d: Denoising, *, strength: float) -> Draw:
  """From IMAGE with noise of time `strength`: SDEdit."""
  times = _times(d)

  def draw(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    x0 = d.encode(frozen, cond[IMAGE])
    run = partial(editing.sdedit, d.sampler, _denoiser(d, params, frozen), d.process(params), strength=strength)
    return _decoded(d, frozen, run(x0, times, cond=d.condition(cond), keys=keys))

  return draw


def inpainted(d: Denoising, *, repeats: int = 10) -> Draw:
  """What of IMAGE is not in MASK: RePaint, at the walk's times."""
  times = _walk_times(d)

  def draw(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    noise_keys, step_keys = _split(keys)
    process = d.process(params)
    noise = process.sigma(jnp.float32(1)) * image_noise(noise_keys, d.shape)
    mask = jax.image.resize(cond[MASK], (len(keys), *d.shape[:2], 1), 'linear')
    run = partial(editing.repaint, _denoiser(d, params, frozen), process, repeats=repeats, clip=d.limit, sampler=d.walk)
    known = d.encode(frozen, cond[IMAGE])
    mask = jnp.broadcast_to(mask, known.shape)
    x0 = run(noise, times, known=known, mask=mask, cond=d.condition(cond), keys=step_keys)
    return _decoded(d, frozen, x0)

  return draw


def interpolated(d: Denoising, first: Key[Array, ''], last: Key[Array, '']) -> Draw:
  """Between the images of two keys, at WEIGHT: slerp of their noise. A sampler's own noise is that of `first`."""

  def draw(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    ends = [_split(jnp.broadcast_to(key, keys.shape)) for key in (first, last)]
    a, b = (image_noise(noise_keys, d.shape) for noise_keys, _ in ends)
    return _run(d, params, frozen, cond, editing.slerp(a, b, cond[WEIGHT]), ends[0][1])

  return draw


def reconstructed(d: Denoising, *, repeats: int = 0) -> Draw:
  """IMAGE through its own noise and back, by DDIM without guidance at the walk's times."""
  times, inverse = _walk_times(d), d.inverse
  if inverse is None:
    raise ValueError(
      'this model tells where a path ends, not where it comes from, so the noise of an image cannot be found; '
      'its images can be edited, inpainted, interpolated, watched and stopped early'
    )

  def draw(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    x0, process = d.encode(frozen, cond[IMAGE]), d.process(params)
    denoise, condition = d.denoiser(params, frozen), d.condition(cond)
    noise = inverse(denoise, process, x0, times, cond=condition, repeats=repeats)
    return _decoded(d, frozen, ddim(denoise, process, noise, times, cond=condition))

  return draw


def stopped(d: Denoising, at: float) -> Denoising:
  """Ends at the time `at`, in x0 as the network sees it there."""
  sampler, walk_times = partial(d.sampler, times=grids.stopped(_times(d), at)), grids.stopped(_walk_times(d), at)
  return d._replace(sampler=sampler, walk_times=walk_times)


def fine(times: Float[np.ndarray, ' n'], steps: int = 32) -> Float[np.ndarray, ' m']:
  """`walk_times` of a model of few steps that knows all times: its own, if they are `steps` or more, or so many."""
  return times if len(times) > steps else grids.uniform(steps)


def _denoiser(d: Denoising, params: dict, frozen: dict) -> Callable[..., Prediction]:
  """Guided, and watched if anybody does."""
  denoise = d.guide(d.denoiser(params, frozen))
  return denoise if d.show is None else preview.watched(denoise, d.show, view=partial(_decoded, d, frozen))


def _run(d: Denoising, params: dict, frozen: dict, cond: Cond, noise: Array, keys: Array) -> Array:
  process = d.process(params)
  x = process.sigma(jnp.float32(1)) * noise
  x0 = d.sampler(_denoiser(d, params, frozen), process=process, x=x, cond=d.condition(cond), keys=keys)
  return _decoded(d, frozen, x0)


def _decoded(d: Denoising, frozen: dict, x0: Array) -> Array:
  return d.decode(frozen, x0 if d.limit is None else jnp.clip(x0, -d.limit, d.limit))


def _split(keys: Key[Array, ' b']) -> tuple[Array, Array]:
  """Keys of the start's noise and of the sampler's."""
  noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  return noise_keys, step_keys


def _walk_times(d: Denoising) -> np.ndarray:
  return _times(d) if d.walk_times is None else np.asarray(d.walk_times, np.float32)


def _times(d: Denoising) -> np.ndarray:
  if not isinstance(d.sampler, partial) or 'times' not in d.sampler.keywords:
    raise ValueError("the sampler's times are not known: build the objective with sampler=partial(..., times=grid)")
  return np.asarray(d.sampler.keywords['times'], np.float32)
