"""Checkpoints of Stable Diffusion 1, 2, XL and 3 and of Flux in one file, as the original code and its users keep them.

  model.diffusion_model.                              the U-Net (unet.py) or the transformer (mmdit_original.py)
  first_stage_model., vae.                            the autoencoder (autoencoder.py)
  cond_stage_model., conditioner., text_encoders.     the text encoders (checkpoint_text.py)

Sizes are those of the tensors. The file does not say what its network predicts: of Stable Diffusion 2, whose versions
differ in it, the caller has to. Tokenizers are those that `jaxgen weights get clip-bpe` stores.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxgen.data.tokenizers.published import clip_files
from jaxgen.models.t5 import T5Encoder
from jaxgen.models.unet import STABLE, UNet
from jaxgen.pretrained import (
  autoencoder,
  checkpoint_text,
  layout,
  mmdit_original,
  pipeline,
  safetensors_file,
  schedulers,
  tokenizer_files,
  torch_file,
  unet,
)
from jaxgen.pretrained.layout import Layout
from jaxgen.pretrained.pipeline import Pipeline
from jaxgen.pretrained.state_dict import Tensors

_UNET, _VAE = 'model.diffusion_model.', 'first_stage_model.'
_HEAD = 64
_SD1_HEADS = 8
_SD1_TEXT = 768  # width of CLIP L, which Stable Diffusion 1 reads


def is_checkpoint(path: str | os.PathLike) -> bool:
  """Whether a file holds a whole generator; False for a damaged file."""
  path = Path(path)
  if path.is_dir() or path.suffix not in ('.safetensors', '.ckpt') or not path.exists():
    return False
  return path.suffix == '.ckpt' or any(name.startswith(_UNET) for name in safetensors_file.lazily(path))


def load(path: str | os.PathLike, *, prediction: str | None = None, dtype: Any = jnp.float32) -> Pipeline:
  """The generator of a file.

  Args:
    path: path of the file, .safetensors or .ckpt; nothing in it is run.
    prediction: the network's prediction, 'epsilon' or 'v_prediction'; needed for Stable Diffusion 2.
    dtype: dtype of the networks' activations; the autoencoder's are float32.

  Raises:
    ValueError: the file is damaged, or of another model, or `prediction` has to be given.
  """
  source = os.fspath(path)
  tensors = safetensors_file.lazily(path) if source.endswith('.safetensors') else torch_file.state_dict(path)
  if mmdit_original.is_mmdit(tensors, _UNET):
    return _flow(path, tensors, dtype)
  texts = checkpoint_text.layouts(tensors)
  if not texts or not any(name.startswith(_UNET) for name in tensors):
    raise ValueError(f'{path} is no checkpoint of Stable Diffusion: it lacks {_UNET} or a text encoder')
  denoiser = _unet(tensors, dtype)
  large = 'text_encoder_2' in texts
  if prediction is None:
    if not large and _text_width(tensors) != _SD1_TEXT:
      raise ValueError(
        f'{path} is of Stable Diffusion 2, whose versions predict different things and do not say which; give '
        '--prediction epsilon (2.0-base, 2.1-base) or v_prediction (2.0, 2.1)'
      )
    prediction = 'epsilon'
  vae = autoencoder.original(autoencoder.published('sdxl-f8' if large else 'sd-f8'))
  scaled = vae._replace(scaling=autoencoder.scaling({'scaling_factor': 0.13025 if large else 0.18215}, 4))
  layouts = {'unet': denoiser, 'vae': scaled}
  layouts |= {name: made._replace(net=made.net.clone(dtype=dtype)) for name, made in texts.items()}
  return Pipeline(
    {name: layout.lazily(made, tensors, source=source) for name, made in layouts.items()},
    {name: tokenizer_files.clip_tokenizer(pad=pad) for name, pad in _pads(texts).items()},
    schedulers.STABLE_DIFFUSION._replace(
      prediction_type=prediction,
      scheduler='EulerDiscreteScheduler' if large else 'DDIMScheduler',
      more=_SCHEDULE | ({} if large else {'clip_sample': False, 'set_alpha_to_one': False}),
    ),
    _index(texts, large),
    {
      f'{name}/{file}': content
      for name, pad in _pads(texts).items()
      for file, content in clip_files(tokenizer_files.load('clip-bpe'), pad=pad).items()
    },
  )


def _flow(path: str | os.PathLike, tensors: Tensors, dtype: Any) -> Pipeline:
  """Stable Diffusion 3 or Flux."""
  flux = mmdit_original.is_flux(tensors, _UNET)
  tensors = {_VAE + name.removeprefix('vae.') if name.startswith('vae.') else name: t for name, t in tensors.items()}
  texts = checkpoint_text.layouts(tensors)
  if flux and 'text_encoder_3' in texts:
    texts['text_encoder_2'] = texts.pop('text_encoder_3')
  wanted = ('text_encoder', 'text_encoder_2')
  if not set(wanted) <= set(texts) or not any(name.startswith(_VAE) for name in tensors):
    raise ValueError(
      f'{path} has a transformer of {"Flux" if flux else "Stable Diffusion 3"}, but not its autoencoder and text '
      'encoders; give the file that has all of them, or the folder in the layout of diffusers'
    )
  denoiser = mmdit_original.layout(tensors, prefix=_UNET, dtype=dtype)
  vae, scale = ('flux-f8', (0.1159, 0.3611)) if flux else ('sd3-f8', (0.0609, 1.5305))
  config = dict(zip(('shift_factor', 'scaling_factor'), scale, strict=True))
  made = autoencoder.original(autoencoder.published(vae))
  layouts = {'transformer': denoiser, 'vae': made._replace(scaling=autoencoder.scaling(config, 16))}
  layouts |= {name: text._replace(net=text.net.clone(dtype=dtype)) for name, text in texts.items()}
  distilled = flux and not denoiser.net.guidance  # schnell
  moving = {'base_shift': 0.5, 'max_shift': 1.15, 'base_image_seq_len': 256, 'max_image_seq_len': 4096}
  scheduler = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'num_train_timesteps': 1000}
  scheduler |= {'shift': 1.0 if distilled else 3.0, 'use_dynamic_shifting': flux and not distilled}
  tokenizers, files = _tokenizers_of_flow(texts)
  index = {name: ['transformers', 'T5EncoderModel' if _is_t5(text) else _CLIPS[flux]] for name, text in texts.items()}
  for name, text in texts.items():
    kind = 'T5TokenizerFast' if _is_t5(text) else 'CLIPTokenizer'
    index[name.replace('text_encoder', 'tokenizer')] = ['transformers', kind]
  index |= {'vae': ['diffusers', 'AutoencoderKL'], 'scheduler': ['diffusers', scheduler['_class_name']]}
  transformer = 'FluxTransformer2DModel' if flux else 'SD3Transformer2DModel'
  kind = (pipeline.FLUX if flux else pipeline.SD3)[0]
  return Pipeline(
    {name: layout.lazily(it, tensors, source=os.fspath(path)) for name, it in layouts.items()},
    tokenizers,
    schedulers.read(scheduler | (moving if flux else {})),
    {'_class_name': kind, 'transformer': ['diffusers', transformer], **index},
    files,
  )


_CLIPS = {True: 'CLIPTextModel', False: 'CLIPTextModelWithProjection'}  # Flux's, Stable Diffusion 3's
_T5_LENGTH = 512


def _is_t5(text: Layout) -> bool:
  return isinstance(text.net, T5Encoder)


def _tokenizers_of_flow(texts: Mapping[str, Layout]) -> tuple[dict[str, Any], dict[str, bytes]]:
  """Tokenizers, and their files by path."""
  tokenizers: dict[str, Any] = {}
  files: dict[str, bytes] = {}
  for component, text in texts.items():
    name = component.replace('text_encoder', 'tokenizer')
    if _is_t5(text):
      tokenizers[name] = tokenizer_files.t5_tokenizer(length=_T5_LENGTH)
      about = {'tokenizer_class': 'T5Tokenizer', 'model_max_length': _T5_LENGTH}
      made = {
        'tokenizer.json': tokenizer_files.load('t5-tokenizer'),
        'tokenizer_config.json': json.dumps(about).encode(),
      }
    else:
      pad = None if component == 'text_encoder' else 0
      tokenizers[name] = tokenizer_files.clip_tokenizer(pad=pad)
      made = clip_files(tokenizer_files.load('clip-bpe'), pad=pad)
    files |= {f'{name}/{file}': content for file, content in made.items()}
  return tokenizers, files


_SCHEDULE = {'timestep_spacing': 'leading', 'steps_offset': 1}


def _unet(tensors: Tensors, dtype: Any) -> Layout:
  """The layout of the U-Net, whose sizes follow from its tensors."""
  shapes = {name.removeprefix(_UNET): tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(_UNET)}
  try:
    width, channels = shapes['input_blocks.0.0.weight'][:2]
    out = shapes['out.2.weight'][0]
    levels, blocks = _levels(shapes)
  except KeyError as error:
    raise ValueError(f'the checkpoint has tensors under {_UNET}, but no {error}') from error
  features = [level[0] for level in levels]
  depths = tuple(depth for _, depth in levels)
  text, linear = _text_width(tensors), len(_projection(shapes)) == 2
  vector = shapes['label_emb.0.0.weight'][1] if 'label_emb.0.0.weight' in shapes else 0
  middle = _depth(shapes, 'middle_block.1')
  net = UNet(
    width=width,
    multipliers=tuple(size // width for size in features),
    blocks=blocks,
    attention=tuple(level for level, depth in enumerate(depths) if depth),
    heads=1 if linear else _SD1_HEADS,
    head_size=_HEAD if linear else None,
    transformer=1 if {*depths[:-1], middle} <= {0, 1} else (*depths[:-1], middle),
    size_features=256 if vector else 0,
    style=STABLE,
    dtype=dtype,
  )
  made = unet.original(
    net, channels=out, text_width=text, concat=channels - out, vector=vector, linear_projection=linear, prefix=_UNET
  )
  config = {'sample_size': {0: 64}.get(vector, 128), 'use_linear_projection': linear}
  return made._replace(config=config)


def _levels(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[tuple[int, int]], int]:
  """(features, depth of the transformers) of each level, and the number of blocks in each."""
  levels: list[tuple[int, int]] = []
  number = blocks = 1
  while (name := f'input_blocks.{number}.0.in_layers.2.weight') in shapes:
    levels.append((shapes[name][0], _depth(shapes, f'input_blocks.{number}.1')))
    blocks = next(i for i in range(1, 100) if f'input_blocks.{number + i}.0.in_layers.2.weight' not in shapes)
    number += blocks + 1  # the last is the layer that halves
  return levels, blocks


def _depth(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
  found = re.compile(rf'{re.escape(name)}\.transformer_blocks\.(\d+)\.')
  return 1 + max((int(match.group(1)) for key in shapes if (match := found.match(key))), default=-1)


def _projection(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
  return shapes['middle_block.1.proj_in.weight']


def _text_width(tensors: Tensors) -> int:
  name = f'{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight'
  if name not in tensors:
    raise ValueError(f'the checkpoint has no {name}, so its U-Net reads no text')
  return tensors[name].shape[1]


def _pads(texts: Mapping[str, Layout]) -> dict[str, int | None]:
  """Padding of each tokenizer: the end of the text for CLIP L, 0 for the others."""
  made: dict[str, int | None] = {}
  for name, text in texts.items():
    net: Any = text.net
    is_clip_l = name == 'text_encoder' and net.width == _SD1_TEXT
    made[name.replace('text_encoder', 'tokenizer')] = None if is_clip_l else 0
  return made


def _index(texts: Mapping[str, Layout], large: bool) -> dict[str, Any]:
  kind = (pipeline.SDXL if large else pipeline.STABLE_DIFFUSION)[0]
  index: dict[str, Any] = {'_class_name': kind, 'unet': ['diffusers', 'UNet2DConditionModel']}
  index |= {'vae': ['diffusers', 'AutoencoderKL'], 'scheduler': ['diffusers', 'DDIMScheduler']}
  if large:
    index |= {'force_zeros_for_empty_prompt': True, 'requires_aesthetics_score': len(texts) == 1}
  for name in texts:
    kind = 'CLIPTextModelWithProjection' if name == 'text_encoder_2' else 'CLIPTextModel'
    index |= {
      name: ['transformers', kind],
      name.replace('text_encoder', 'tokenizer'): ['transformers', 'CLIPTokenizer'],
    }
  return index
