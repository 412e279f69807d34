"""A published generator as an objective: it samples as in diffusers, and trains on as it was trained.

  it = published.load(folder)
  objective = objective_of(it, size=(512, 512), steps=30)
  frozen, params = frozen_of(it), {'net': it.denoiser.params}

The process, what the network predicts, the sampler and its times are the scheduler's; encoders and autoencoder are
frozen. Differs from the published training code in what a folder does not say: times are uniform, or logit-normal for
a flow, and losses are not weighted.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxgen.objectives.base import Objective
from jaxgen.objectives.conditioning import Conditioner
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.instruct import instructed, mode_of, two_scales
from jaxgen.objectives.latent import latent
from jaxgen.objectives.super_resolution import LEVEL, corner_aligned, enlarging
from jaxgen.pretrained import pipeline as pipelines
from jaxgen.pretrained import schedulers, unclip
from jaxgen.pretrained.pipeline import TEXT_ENCODERS, Pipeline
from jaxgen.pretrained.prompts import Prompts, prompts_of, text_width
from jaxgen.pretrained.sampling import sampling
from jaxgen.processes import times
from jaxgen.processes.parameterisation import learned_variance
from jaxgen.samplers.guidance import classifier_free

_PATCH = 2
_INSTRUCTED = ('StableDiffusionInstructPix2PixPipeline',)
_IMAGE_SCALE = 1.5  # InstructPix2Pix's s_I


def objective_of(
  pipeline: Pipeline,
  *,
  size: tuple[int, int] | None = None,
  steps: int = 50,
  guidance: float | None = None,
  image_guidance: float | None = None,
  prompts: Prompts | None = None,
  tile: int | None = None,
  double_shift: bool = False,
  extend: Callable[[Conditioner], Conditioner] = lambda conditioner: conditioner,
) -> Objective:
  """The diffusion objective of a generator.

  Args:
    pipeline: the generator.
    size: height and width of the images, in pixels; the size it was trained at by default.
    steps: steps of the sampler.
    guidance: scale of classifier-free guidance; the generator's usual one by default.
    image_guidance: scale of guidance by the picture that is edited, of InstructPix2Pix.
    prompts: how the generator takes a prompt, of several chunks or with drops in training; `prompts_of` by default.
    tile: decodes large images in tiles of this many latents a side.
    double_shift: a flow shifts its times twice, as diffusers does.
    extend: adds conditions beside the prompt, such as controls.

  Raises:
    ValueError: the sizes do not fit.
  """
  size = size or image_size(pipeline)
  prompts = prompts or prompts_of(pipeline, size=size)
  autoencoder = pipeline.autoencoder
  factor = 1 if autoencoder is None else autoencoder.net.factor
  if size[0] % factor or size[1] % factor:
    raise ValueError(f'images of {size[0]}x{size[1]} do not divide by {factor}, the side of a latent')
  check_widths(pipeline, prompts)
  shape = (size[0] // factor, size[1] // factor, channels(pipeline))
  schedule, net = pipeline.schedule, pipeline.denoiser.net
  even = pipeline.kind in (*pipelines.FLUX, *pipelines.Z_IMAGE)
  flux = pipeline.kind in pipelines.FLUX
  tokens = shape[0] * shape[1] // _PATCH**2  # for flows, which are transformers
  made = sampling(schedule, steps=steps, tokens=tokens, even=even, double_shift=double_shift)
  parameterise = schedulers.parameterise(schedule)
  if shape[-1] < _made(pipeline):
    parameterise = learned_variance(parameterise)  # which a solver that has its own variance does not read
  conditioner, scale = prompts.conditioner, prompts.scale if guidance is None or flux else guidance
  guide = classifier_free(scale)
  if is_instructed(pipeline):
    assert autoencoder is not None, pipeline.kind
    conditioner = instructed(conditioner, shape=shape, channels=mode_of(autoencoder.net))
    guide = two_scales(conditioner, text=scale, image=_IMAGE_SCALE if image_guidance is None else image_guidance)
  conditioner = extend(conditioner)
  objective = diffusion(
    net,
    schedulers.process(schedule),
    shape=shape,
    parameterisation=parameterise,
    times=times.logit_normal() if schedule.is_flow else times.discrete(schedule.num_train_timesteps),
    sampler=made.sampler,
    conditioner=conditioner,
    guide=(guide, *made.guide),
    limit=None if autoencoder is not None else 1.0,
    noise_std=made.noise_std,
  )
  return objective if autoencoder is None else latent(objective, autoencoder.net, tile=tile)


def enlarger_of(pipeline: Pipeline, *, low: tuple[int, int], prompts: Prompts, **options: Any) -> Objective:
  """The objective of a generator that enlarges images of another: DeepFloyd IF's second stage.

  It is conditioned on an image, 'low', and the time of the noise that is added to it, 'level'; see `noise_of`.

  Args:
    pipeline: the generator.
    low: height and width of the images that it enlarges.
    prompts: as in `objective_of`.
    options: the others of `objective_of`.
  """
  size, noising = image_size(pipeline), schedulers.process(pipeline.schedules['image_noising_scheduler'])
  if low[0] * size[1] != low[1] * size[0]:
    raise ValueError(f'images of {low[0]}x{low[1]} cannot be enlarged to {size[0]}x{size[1]}: the sides differ')

  def extend(conditioner: Conditioner) -> Conditioner:
    return enlarging(conditioner, noising, size=size, low=low[0], up=corner_aligned)

  return objective_of(pipeline, size=size, prompts=prompts, extend=extend, **options)


def noise_of(pipeline: Pipeline, step: int = 250) -> dict[str, float]:
  """The field 'level' of an enlarger: noise of a step of T, which hides the faults of the stage before."""
  return {LEVEL: (step + 1) / pipeline.schedules['image_noising_scheduler'].num_train_timesteps}


def frozen_of(pipeline: Pipeline) -> dict[str, Any]:
  """The trees of the networks that are not trained, for `Experiment.frozen`; they are read when they are placed."""
  autoencoder = pipeline.autoencoder
  trees = {} if autoencoder is None else {'autoencoder': autoencoder.frozen}
  return trees | {name: pipeline.components[name].params for name in TEXT_ENCODERS if name in pipeline.components}


def image_size(pipeline: Pipeline) -> tuple[int, int]:
  """Height and width that the denoiser was trained at, in pixels."""
  if pipeline.kind in pipelines.UNCLIP:
    return unclip.sides(pipeline)[1:] * 2
  autoencoder, config = pipeline.autoencoder, pipeline.denoiser.meta.config
  side = config.get('sample_size') or (
    128 if pipeline.kind in (*pipelines.FLUX, *pipelines.SD3, *pipelines.Z_IMAGE) else 64
  )
  height, width = side if isinstance(side, list) else (side, side)
  factor = 1 if autoencoder is None else autoencoder.net.factor
  return height * factor, width * factor


def channels(pipeline: Pipeline) -> int:
  """Channels of the image or latents that are denoised."""
  if pipeline.autoencoder is not None:
    return pipeline.autoencoder.net.channels_of_latents
  read = pipeline.denoiser.params['conv_in']['kernel'].shape[2]
  return read // 2 if pipeline.kind in pipelines.ENLARGERS else read


def concatenated(pipeline: Pipeline) -> int:
  """Channels that a U-Net reads beside them: 5 of an inpainting model."""
  params = pipeline.denoiser.params
  return params['conv_in']['kernel'].shape[2] - channels(pipeline) if 'conv_in' in params else 0


def is_instructed(pipeline: Pipeline) -> bool:
  """Whether it edits a picture as an instruction says: InstructPix2Pix."""
  return pipeline.kind in _INSTRUCTED


def is_guided(pipeline: Pipeline, guidance: float | None = None) -> bool:
  """Whether sampling at this scale, or at the usual one, is guided."""
  usual = prompts_of(pipeline, size=image_size(pipeline)).scale
  return pipeline.kind not in pipelines.FLUX and (usual if guidance is None else guidance) > 1


def check_widths(pipeline: Pipeline, prompts: Prompts) -> None:
  """Raises ValueError where the text encoders' width is not what the denoiser reads."""
  if pipeline.kind in pipelines.UNCONDITIONAL:
    return

  def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  fields = shapes(dict(prompts.tokenize([''])))
  found = jax.eval_shape(prompts.conditioner.encode, {}, shapes(frozen_of(pipeline)), fields, keys)
  read, made = text_width(pipeline), found['text'].shape[-1]
  if read != made:
    raise ValueError(f'the denoiser reads tokens of {read} features, and the text encoders make {made}; use its own')


def _made(pipeline: Pipeline) -> int:
  """Channels that the denoiser puts out."""
  params: Any = pipeline.denoiser.params
  if 'conv_out' in params:
    return params['conv_out']['kernel'].shape[-1]
  last = params['final'] if 'kernel' in params['final'] else params['final']['linear']
  net: Any = pipeline.denoiser.net
  return last['kernel'].shape[-1] // net.patch**2
