"""AutoencoderKL and VQModel from and to diffusers' folders, and from the original code's files.

The scaling of latents (models/latents.py) is kept in config.json under diffusers' names: `scaling_factor` and
`shift_factor` where it is one number, `latents_mean` and `latents_std` where it is one for each channel:

  latents = (z - shift_factor) scaling_factor = (z - latents_mean) scaling_factor / latents_std         (1)
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.models import autoencoder as autoencoders
from jaxgen.models import vq
from jaxgen.models.autoencoder import AutoencoderKL, autoencoder_kl
from jaxgen.models.latents import Autoencoder, Scaling, unscaled
from jaxgen.models.vq import VQModel, vq_model
from jaxgen.pretrained import folder, layout, safetensors_file, torch_file
from jaxgen.pretrained.layout import Layout, Meta, Pretrained
from jaxgen.pretrained.state_dict import (
  Leaf,
  Leaves,
  Modules,
  Order,
  Tensors,
  conv,
  conv_1x1,
  flat_shapes,
  from_heads,
  leaf_of,
  table,
  to_heads,
)
from jaxgen.typing import Params

Net = AutoencoderKL | VQModel
CLASSES = ('AutoencoderKL', 'VQModel')
_SD_SCALE = 0.18215  # diffusers' default of scaling_factor
# Shift and scale that the code of published models has, and their files have not; others are not scaled.
_SCALES = {
  'sd-f8': (0.0, _SD_SCALE),
  'sdxl-f8': (0.0, 0.13025),
  'sd3-f8': (0.0609, 1.5305),
  'flux-f8': (0.1159, 0.3611),
}
_WITHIN = 'first_stage_model.'  # where a latent diffusion's file has its autoencoder


class _Names(NamedTuple):
  """How a code base names its modules; `{}` are the level and the number within it."""

  down: str
  up: str
  resize: tuple[str, str]
  attention: str
  middle: tuple[str, str, str]
  norm_out: str
  norms: tuple[str, str, str]  # norms of a block, and of an attention
  skip: str
  projections: tuple[tuple[str, str, str, str], Order, Order]  # projections of an attention: names, layouts
  levels_reversed: bool  # the decoder's levels are numbered from the smallest


_to_heads_conv = Order((1, 2, 0), lambda shape: (shape[1] * shape[2], shape[0], 1, 1))
_from_heads_conv = Order((2, 0, 1), lambda shape: (shape[2], shape[0] * shape[1], 1, 1))
_DIFFUSERS = _Names(
  down='down_blocks.{}.resnets.{}',
  up='up_blocks.{}.resnets.{}',
  resize=('down_blocks.{}.downsamplers.0.conv', 'up_blocks.{}.upsamplers.0.conv'),
  attention='attentions',
  middle=('mid_block.resnets.0', 'mid_block.attentions.0', 'mid_block.resnets.1'),
  norm_out='conv_norm_out',
  norms=('norm1', 'norm2', 'group_norm'),
  skip='conv_shortcut',
  projections=(('to_q', 'to_k', 'to_v', 'to_out.0'), to_heads, from_heads),
  levels_reversed=True,
)
_ORIGINAL = _Names(
  down='down.{}.block.{}',
  up='up.{}.block.{}',
  resize=('down.{}.downsample.conv', 'up.{}.upsample.conv'),
  attention='attn',
  middle=('mid.block_1', 'mid.attn_1', 'mid.block_2'),
  norm_out='norm_out',
  norms=('norm1', 'norm2', 'norm'),
  skip='nin_shortcut',
  projections=(('q', 'k', 'v', 'proj_out'), _to_heads_conv, _from_heads_conv),
  levels_reversed=False,
)
# Names that diffusers gave the projections before 0.18, and still finds in the files of that time.
_FORMER = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of diffusers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  folder.require(config, 'block_out_channels', 'down_block_types')
  net = network(config, dtype=dtype)
  return Layout(
    net, _leaves(net, _DIFFUSERS), config, own=current_names, scaling=scaling(config, net.channels_of_latents)
  )


def write(net: Net, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as diffusers does, with `meta.scaling`.

  Raises:
    ValueError: diffusers has no such model: one with cosine codes or FSQ.
  """
  del params
  scaled = meta.scaling or unscaled(net.channels_of_latents)
  config = dict(meta.config) | configuration(net, scaled, sample_size=meta.config.get('sample_size', 256))
  return Layout(net, _leaves(net, _DIFFUSERS), config, scaling=scaled)


def load(path: str | os.PathLike, *, put: layout.Put | None = None, dtype: Any = jnp.float32) -> Autoencoder:
  """The autoencoder of a folder; arguments and errors as of `published.load`."""
  made = read(folder.config(path, classes=CLASSES), dtype=dtype)
  return as_autoencoder(layout.load(made, path, put=put))


def as_autoencoder(it: Pretrained) -> Autoencoder:
  """A loaded network as an Autoencoder."""
  if not isinstance(it.net, Net):
    raise ValueError(f'{type(it.net).__name__} is no autoencoder; wanted AutoencoderKL or VQModel')
  return Autoencoder(it.net, it.params, it.meta.scaling or unscaled(it.net.channels_of_latents), it.meta.hash)


def save(path: str | os.PathLike, net: Net, params: Params, scaling: Scaling, *, sample_size: int = 256) -> str:
  """Writes a folder that `load` and diffusers read; returns the hash of the weights."""
  return layout.save(write(net, params, Meta({'sample_size': sample_size}, scaling=scaling)), path, params)


def original(net: Net) -> Layout:
  """The layout of the files of the original code of VQGAN, latent diffusion and Stable Diffusion.

  In a checkpoint of a latent diffusion the autoencoder's tensors are under `first_stage_model.`; the discriminator's
  and LPIPS's (`loss.`), and averages, are left out.
  """

  def own(tensors: Tensors) -> Tensors:
    if any(name.startswith(_WITHIN) for name in tensors):
      tensors = {name.removeprefix(_WITHIN): array for name, array in tensors.items() if name.startswith(_WITHIN)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(('loss.', 'model_ema.'))}

  return Layout(net, _leaves(net, _ORIGINAL), {}, own=own)


def convert(file: str | os.PathLike, path: str | os.PathLike, name: str, *, part: str | None = None) -> None:
  """Writes the folder of an autoencoder that is in a file of the original code, alone or within a latent diffusion.

  Args:
    file: a checkpoint, .ckpt, .pt, .pth or .safetensors.
    path: the folder to write.
    name: name of a published network. Its latents are scaled as published, unless the file says how.
    part: entry of a torch file to take, such as 'ema'; see `torch_file.state_dict`.

  Raises:
    ValueError: there is no such network; the file is damaged, holds more than tensors, or is of another network.
  """
  net, (shift, scale) = published(name), _SCALES.get(name, (0.0, 1.0))
  if (plain := Path(file).suffix == '.safetensors') and part:
    raise ValueError(f'{file} has no parts, and --part is {part!r}; leave it out')
  tensors: Tensors = safetensors_file.lazily(file) if plain else torch_file.state_dict(file, part=part)
  if any(name.startswith(_WITHIN) for name in tensors):
    scale = np.asarray(tensors.get('scale_factor', scale), np.float32).item()
  each = Scaling(*(np.full(net.channels_of_latents, value, np.float32) for value in (shift, scale)))
  save(path, net, layout.pretrained(original(net), tensors, source=os.fspath(file)).params, each)


def published(name: str) -> Net:
  """A published network by name."""
  if name not in (known := {**autoencoders.SIZES, **vq.SIZES}):
    raise ValueError(f'there is no autoencoder {name!r}; wanted one of {", ".join(known)}')
  return autoencoder_kl(name) if name in autoencoders.SIZES else vq_model(name)


def blank(name: str) -> Autoencoder:
  """A published network with zeros for its weights, which take no memory before they are placed, and no hash.

  It stands for the trained one where only shapes and times matter: in a plan, or beside synthetic latents.
  """
  net = published(name)
  flat = {path: np.broadcast_to(np.float32(0), shape) for path, shape in flat_shapes(net.init, _image(net)).items()}
  return Autoencoder(net, traverse_util.unflatten_dict(flat, sep='/'), unscaled(net.channels_of_latents), '')


def network(config: Mapping[str, Any], *, dtype: Any = jnp.float32) -> Net:
  """The network of a configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  levels = [kind.startswith('Attn') for kind in config['down_block_types']]
  plain, attending = ('DownEncoderBlock2D', 'UpDecoderBlock2D'), ('AttnDownEncoderBlock2D', 'AttnUpDecoderBlock2D')
  folder.expect(
    config,
    {
      'act_fn': 'silu',
      'norm_type': 'group',
      'out_channels': config.get('in_channels', 3),
      'down_block_types': [(attending if level else plain)[0] for level in levels],
      'up_block_types': [(attending if level else plain)[1] for level in reversed(levels)],
    },
  )
  features = config['block_out_channels']
  width = math.gcd(*features)
  shared = {
    'multipliers': tuple(size // width for size in features),
    'width': width,
    'attention': tuple(i for i, attends in enumerate(levels) if attends),
    'blocks': config.get('layers_per_block', 1),
    'groups': config.get('norm_num_groups', 32),
    'channels': config.get('in_channels', 3),
    'middle_attention': config.get('mid_block_add_attention', True),
    'dtype': dtype,
  }
  if config['_class_name'] == 'AutoencoderKL':
    before, after = config.get('use_quant_conv', True), config.get('use_post_quant_conv', True)
    apart = None if before == after else after
    return AutoencoderKL(latent=config.get('latent_channels', 4), quant=before, post_quant=apart, **shared)
  return VQModel(
    latent=config.get('latent_channels', 3),
    codes=config.get('num_vq_embeddings', 256),
    width_of_code=config.get('vq_embed_dim'),
    **shared,
  )


def configuration(net: Net, scaling: Scaling, *, sample_size: int = 256) -> folder.Config:
  """The inverse of `network` and of `scaling`."""
  levels = ['Attn' * (level in net.attention) for level in range(len(net.multipliers))]
  config = {
    'in_channels': net.channels,
    'out_channels': net.channels,
    'block_out_channels': [net.width * multiplier for multiplier in net.multipliers],
    'down_block_types': [f'{kind}DownEncoderBlock2D' for kind in levels],
    'up_block_types': [f'{kind}UpDecoderBlock2D' for kind in reversed(levels)],
    'layers_per_block': net.blocks,
    'act_fn': 'silu',
    'latent_channels': net.latent,
    'norm_num_groups': net.groups,
    'mid_block_add_attention': net.middle_attention,
    'sample_size': sample_size,
    **_scaling_entries(scaling),
  }
  if isinstance(net, AutoencoderKL):
    return config | {
      '_class_name': 'AutoencoderKL',
      'use_quant_conv': net.quant,
      'use_post_quant_conv': net.has_post_quant,
      'force_upcast': True,
    }
  if net.cosine or net.levels:
    raise ValueError('diffusers has no VQModel with cosine codes or FSQ, so there is no folder for it')
  own = {'num_vq_embeddings': net.codes, 'vq_embed_dim': net.features, 'norm_type': 'group'}
  return config | {'_class_name': 'VQModel'} | own


def scaling(config: Mapping[str, Any], channels: int) -> Scaling:
  """Shift and scale of latents, from Eq. 1."""

  def each(value: Any) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, np.float32), (channels,)).copy()

  factor = config.get('scaling_factor', _SD_SCALE)
  if config.get('latents_mean') is not None:
    return Scaling(each(config['latents_mean']), each(factor / np.asarray(config['latents_std'], np.float64)))
  return Scaling(each(config.get('shift_factor') or 0.0), each(factor))


def _scaling_entries(scaling: Scaling) -> dict[str, Any]:
  shift, scale = (np.asarray(values, np.float64) for values in scaling)
  if np.all(shift == shift[0]) and np.all(scale == scale[0]):
    moved = {'shift_factor': _short(shift[0])} if shift[0] else {}
    return moved | {'scaling_factor': _short(scale[0])}
  return {
    'latents_mean': [_short(value) for value in shift],
    'latents_std': [float(1 / value) for value in scale],
    'scaling_factor': 1.0,
  }


def _short(value: float) -> float:
  """The shortest decimal that reads as this float32."""
  return float(str(np.float32(value)))


def current_names(tensors: Tensors) -> Tensors:
  """The tensors with the names that diffusers uses today."""

  def rename(name: str) -> str:
    module, _, parameter = name.rpartition('.')
    before, _, last = module.rpartition('.')
    return f'{before}.{_FORMER[last]}.{parameter}' if last in _FORMER and '.attentions.' in name else name

  return {rename(name): tensor for name, tensor in tensors.items()}


def _image(net: Net) -> jax.Array:
  """The smallest that it takes."""
  return jnp.zeros((1, net.factor, net.factor, net.channels))


def _leaves(net: Net, names: _Names) -> Leaves:
  modules = {'quant_conv': ('quant_conv', conv_1x1), 'post_quant_conv': ('post_quant_conv', conv_1x1)}
  modules |= _half(net, names, 'encoder', names.down, net.blocks, names.resize[0])
  modules |= _half(net, names, 'decoder', names.up, net.blocks + 1, names.resize[1])
  shapes = flat_shapes(net.init, _image(net))
  codebook = shapes.pop('codebook', None)
  leaves = {path: leaf_of(path, shape, modules) for path, shape in shapes.items()}
  if codebook is not None:
    leaves['codebook'] = Leaf(('quantize.embedding.weight',), codebook, (0, 1), codebook)
  return leaves


def _half(net: Net, names: _Names, half: str, block: str, blocks: int, resize: str) -> Modules:
  """The modules of the encoder or of the decoder."""
  modules = {
    'conv_in': ('conv_in', conv),
    'norm_out': (names.norm_out, table),
    'conv_out': ('conv_out', conv),
    **_under('middle_block_0', names.middle[0], _block(names)),
    **_under('middle_attention', names.middle[1], _attention(names)),
    **_under('middle_block_1', names.middle[2], _block(names)),
  }
  for level in range(len(net.multipliers)):
    place = len(net.multipliers) - 1 - level if half == 'decoder' and names.levels_reversed else level
    modules[f'level_{level}_resize'] = (resize.format(place), conv)
    for i in range(blocks):
      at = block.format(place, i)
      modules |= _under(f'level_{level}_block_{i}', at, _block(names))
      head, _, _ = at.removesuffix(f'.{i}').rpartition('.')
      modules |= _under(f'level_{level}_attention_{i}', f'{head}.{names.attention}.{i}', _attention(names))
  return _under(half, half, modules)


def _under(path: str, name: str, modules: Modules) -> Modules:
  return {f'{path}/{module}': (f'{name}.{other}', layout) for module, (other, layout) in modules.items()}


def _block(names: _Names) -> Modules:
  return {
    'norm_in': (names.norms[0], table),
    'conv_in': ('conv1', conv),
    'norm_out': (names.norms[1], table),
    'conv_out': ('conv2', conv),
    'skip': (names.skip, conv_1x1),
  }


def _attention(names: _Names) -> Modules:
  projections, inwards, outwards = names.projections
  layouts = (inwards, inwards, inwards, outwards)
  each = zip(('query', 'key', 'value', 'out'), projections, layouts, strict=True)
  return {'norm': (names.norms[2], table)} | {module: (name, layout) for module, name, layout in each}
