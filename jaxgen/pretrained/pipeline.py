"""Whole published generators: a folder of diffusers with model_index.json, read and written.

  model_index.json                   its class, and its parts: {"unet": ["diffusers", "UNet2DConditionModel"], ...}
  unet/ or transformer/, vae/, text_encoder/, text_encoder_2/, ...        networks: folders as published.py reads them
  tokenizer/, tokenizer_2/, ...      vocabularies
  scheduler/                         scheduler_config.json

DALL-E 2's have a `prior/`, a `decoder/`, two upsamplers and a scheduler for each of the three stages (unclip.py).

Parameters are read when they are used: a pipeline that was loaded has their shapes, and `np.asarray(leaf)` reads one.
A class name is only looked up; nothing that a folder names is imported or run.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from etils import epath

from jaxgen.data.tokenizers import Tokenizer, from_folder
from jaxgen.files import write_whole
from jaxgen.models.latents import Autoencoder, unscaled
from jaxgen.pretrained import folder, networks, schedulers
from jaxgen.pretrained.layout import Pretrained
from jaxgen.pretrained.schedulers import Schedule

INDEX = 'model_index.json'
DENOISERS = ('unet', 'transformer', 'decoder')
TEXT_ENCODERS = ('text_encoder', 'text_encoder_2', 'text_encoder_3')
TOKENIZERS = ('tokenizer', 'tokenizer_2', 'tokenizer_3')
OF_UNCLIP = ('prior', 'text_proj', 'super_res_first', 'super_res_last', 'image_encoder')
NETWORKS = (*DENOISERS, 'vae', *TEXT_ENCODERS, *OF_UNCLIP)
PROCESSORS = ('feature_extractor',)  # kept as files
SCHEDULERS = ('prior_scheduler', 'super_res_scheduler', 'image_noising_scheduler')  # beside the denoiser's
# Without text: what the pipelines of images alone are made of.
UNCONDITIONAL = ('DDPMPipeline', 'DDIMPipeline', 'PNDMPipeline', 'DiTPipeline')
STABLE_DIFFUSION = ('StableDiffusionPipeline', 'StableDiffusionImg2ImgPipeline', 'StableDiffusionInpaintPipeline',
                    'StableDiffusionInstructPix2PixPipeline')  # fmt: skip
SDXL = ('StableDiffusionXLPipeline', 'StableDiffusionXLImg2ImgPipeline', 'StableDiffusionXLInpaintPipeline')
SD3 = ('StableDiffusion3Pipeline', 'StableDiffusion3Img2ImgPipeline', 'StableDiffusion3InpaintPipeline')
FLUX = ('FluxPipeline', 'FluxImg2ImgPipeline', 'FluxInpaintPipeline')
PIXART = ('PixArtAlphaPipeline', 'PixArtSigmaPipeline')
UNCLIP = ('UnCLIPPipeline', 'UnCLIPImageVariationPipeline')
Z_IMAGE = ('ZImagePipeline', 'ZImageImg2ImgPipeline')
ENLARGERS = ('IFSuperResolutionPipeline',)  # they enlarge another generator's images
DEEPFLOYD = ('IFPipeline', *ENLARGERS)
CLASSES = (*UNCONDITIONAL, *STABLE_DIFFUSION, *SDXL, *SD3, *FLUX, *PIXART, *UNCLIP, *DEEPFLOYD, *Z_IMAGE)
OF_PIXELS = (*UNCLIP, *DEEPFLOYD)  # without an autoencoder


class Pipeline(NamedTuple):
  """A published generator.

  Attributes:
    components: its networks by the names of their folders, such as 'unet', 'vae', 'text_encoder_2'.
    tokenizers: its tokenizers by the names of their folders.
    schedule: process, prediction and sampler of the denoiser.
    config: model_index.json.
    files: contents of the tokenizers' and processors' files by path, for `save`.
    schedules: those of other stages by the names of their folders, such as 'prior_scheduler'.
  """

  components: Mapping[str, Pretrained]
  tokenizers: Mapping[str, Tokenizer]
  schedule: Schedule
  config: Mapping[str, Any]
  files: Mapping[str, bytes] = {}
  schedules: Mapping[str, Schedule] = {}

  @property
  def kind(self) -> str:
    """The class of pipeline that it is, in diffusers."""
    return self.config['_class_name']

  @property
  def denoiser(self) -> Pretrained:
    """The denoising network."""
    return next(self.components[name] for name in DENOISERS if name in self.components)

  @property
  def autoencoder(self) -> Autoencoder | None:
    """The autoencoder of its latents."""
    it = self.components.get('vae')
    if it is None:
      return None
    net: Any = it.net
    return Autoencoder(net, it.params, it.meta.scaling or unscaled(net.channels_of_latents), it.meta.hash)


def load(path: str | os.PathLike, *, dtype: Any = jnp.float32) -> Pipeline:
  """The pipeline of a folder.

  Args:
    path: path of the folder.
    dtype: dtype of the networks' activations; an autoencoder that asks for float32 (`force_upcast`) has it.

  Raises:
    FileNotFoundError: a part that model_index.json names is not there.
    ValueError: jaxgen has no such pipeline or part.
  """
  path = epath.Path(path)
  index = folder.config(path, classes=CLASSES, name=INDEX)
  parts = {name for name, value in index.items() if isinstance(value, list) and value and value[0]}
  components = {}
  for name in NETWORKS:
    if name in parts:
      exact = name == 'vae' and json.loads(_needed(path / name / 'config.json').read_text()).get('force_upcast', True)
      components[name] = networks.lazily(path / name, dtype=jnp.float32 if exact else dtype)
  tokenizers = {name: from_folder(_needed(path / name)) for name in TOKENIZERS if name in parts}
  kept = [path / name for name in (*TOKENIZERS, *PROCESSORS) if name in parts and (path / name).exists()]
  pipeline = Pipeline(
    components,
    tokenizers,
    schedulers.load(_needed(path / _scheduler(index))),
    index,
    {f'{place.name}/{file.name}': file.read_bytes() for place in kept for file in place.iterdir() if file.is_file()},
    {name: schedulers.load(_needed(path / name)) for name in SCHEDULERS if name in parts},
  )
  check(pipeline, path)
  return pipeline


def _scheduler(index: Mapping[str, Any]) -> str:
  """The folder of the denoiser's scheduler."""
  return 'decoder_scheduler' if index['_class_name'] in UNCLIP else 'scheduler'


def _needed(path: epath.Path) -> epath.Path:
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist, and {path.parent}/{INDEX} or its class asks for it')
  return path


def check(pipeline: Pipeline, path: Any) -> None:
  """Raises ValueError where the parts of a pipeline are not whole, or do not fit each other."""
  if not any(name in pipeline.components for name in DENOISERS):
    raise ValueError(f'{path} has no unet and no transformer (nor a decoder), so it denoises nothing')
  if pipeline.kind in UNCONDITIONAL:
    return
  for encoder, tokenizer in zip(TEXT_ENCODERS, TOKENIZERS, strict=True):
    if (encoder in pipeline.components) != (tokenizer in pipeline.tokenizers):
      there, missing = (encoder, tokenizer) if encoder in pipeline.components else (tokenizer, encoder)
      raise ValueError(f'{path} has {there} and no {missing}; a prompt needs both')
  if pipeline.kind in ENLARGERS:  # which may read the text encoder of the stage before
    if 'image_noising_scheduler' not in pipeline.schedules:
      raise ValueError(f'{path} is a {pipeline.kind} without image_noising_scheduler')
    return
  if not any(name in pipeline.components for name in TEXT_ENCODERS):
    raise ValueError(f'{path} is a {pipeline.kind} without a text encoder')
  if pipeline.kind in UNCLIP:
    _check_unclip(pipeline, path)
  elif pipeline.kind not in OF_PIXELS and 'vae' not in pipeline.components:
    raise ValueError(f'{path} is a {pipeline.kind} without vae, which decodes its latents')


def _check_unclip(pipeline: Pipeline, path: Any) -> None:
  first = ('prior', 'prior_scheduler') if pipeline.kind == 'UnCLIPPipeline' else ('image_encoder',)
  there = {*pipeline.components, *pipeline.schedules}
  for name in ('decoder', 'text_proj', 'super_res_first', 'super_res_last', 'super_res_scheduler', *first):
    if name not in there:
      raise ValueError(f'{path} is a {pipeline.kind} without {name}')


def save(pipeline: Pipeline, path: str | os.PathLike) -> None:
  """Writes a folder that `load` and diffusers read; a folder with model_index.json is whole.

  Args:
    pipeline: the pipeline; its networks are written in float32.
    path: path of the folder.
  """
  path = epath.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  (path / INDEX).unlink(missing_ok=True)
  for name, it in pipeline.components.items():
    networks.save(it, path / name)
  for name, content in pipeline.files.items():
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path / name, content)
  for name, schedule in {_scheduler(pipeline.config): pipeline.schedule, **pipeline.schedules}.items():
    schedulers.save(path / name, schedule)
  folder.write_config(path / INDEX, dict(pipeline.config))
