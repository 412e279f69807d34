"""PixArt-alpha's and PixArt-Sigma's transformers from and to diffusers' folders."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxgen.models.pixart import PixArt
from jaxgen.pretrained import folder
from jaxgen.pretrained.layout import Layout, Meta
from jaxgen.pretrained.state_dict import (
  Leaf,
  Module,
  Shape,
  flat_shapes,
  from_heads,
  kernel,
  linear,
  patches,
  stack_leaf,
  to_heads,
  vector,
)
from jaxgen.typing import Params

CLASSES = ('PixArtTransformer2DModel',)
_BLOCK = {
  'attention/qkv': Module(('attn1.to_q', 'attn1.to_k', 'attn1.to_v'), to_heads),
  'attention/out': Module(('attn1.to_out.0',), from_heads),
  'cross_attention/query': Module(('attn2.to_q',), to_heads),
  'cross_attention/key': Module(('attn2.to_k',), to_heads),
  'cross_attention/value': Module(('attn2.to_v',), to_heads),
  'cross_attention/out': Module(('attn2.to_out.0',), from_heads),
  'mlp/in': Module(('ff.net.0.proj',), linear),
  'mlp/out': Module(('ff.net.2',), linear),
}
_EMBEDDING = 'adaln_single.emb'
_ENDS = {
  'time_embed/in': (f'{_EMBEDDING}.timestep_embedder.linear_1', linear),
  'time_embed/out': (f'{_EMBEDDING}.timestep_embedder.linear_2', linear),
  'size_embed/in': (f'{_EMBEDDING}.resolution_embedder.linear_1', linear),
  'size_embed/out': (f'{_EMBEDDING}.resolution_embedder.linear_2', linear),
  'aspect_embed/in': (f'{_EMBEDDING}.aspect_ratio_embedder.linear_1', linear),
  'aspect_embed/out': (f'{_EMBEDDING}.aspect_ratio_embedder.linear_2', linear),
  'modulation': ('adaln_single.linear', to_heads),
  'caption_embed/in': ('caption_projection.linear_1', linear),
  'caption_embed/out': ('caption_projection.linear_2', linear),
  'final': ('proj_out', linear),
}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of diffusers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  channels, side = config.get('in_channels', 4), config.get('sample_size', 128)
  heads, doubled = config.get('num_attention_heads', 16), config.get('out_channels', 8) == 2 * channels
  patch, width = config.get('patch_size', 2), heads * config.get('attention_head_dim', 72)
  folder.expect(
    config,
    {
      'out_channels': channels * (1 + doubled),
      'cross_attention_dim': width,
      'attention_bias': True,
      'activation_fn': 'gelu-approximate',
      'norm_type': 'ada_norm_single',
      'norm_elementwise_affine': False,
    },
  )
  sizes = config.get('use_additional_conditions')
  net = PixArt(
    patch=patch,
    depth=config.get('num_layers', 28),
    width=width,
    heads=heads,
    learn_sigma=doubled,
    sizes=side == 128 if sizes is None else bool(sizes),
    base=side // patch,
    scale=config.get('interpolation_scale') or max(side // 64, 1),
    dtype=dtype,
  )
  return Layout(net, _leaves(net, channels, _text_width(config)), config)


def write(net: PixArt, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as diffusers does.

  Raises:
    ValueError: diffusers has no such network.
  """
  if net.pooled or net.own_modulation or not net.base or net.mlp_ratio != 4:
    raise ValueError('diffusers has no PixArt with `pooled`, `own_modulation`, without `base` or with other MLPs')
  channels = params['patch_embed']['kernel'].shape[0] // net.patch**2
  config = dict(meta.config) | {
    '_class_name': 'PixArtTransformer2DModel',
    'num_attention_heads': net.heads,
    'attention_head_dim': net.width // net.heads,
    'in_channels': channels,
    'out_channels': channels * (1 + net.learn_sigma),
    'num_layers': net.depth,
    'cross_attention_dim': net.width,
    'caption_channels': params['caption_embed']['in']['kernel'].shape[0],
    'sample_size': net.base * net.patch,
    'patch_size': net.patch,
    'interpolation_scale': net.scale,
    'use_additional_conditions': net.sizes,
  }
  return Layout(net, _leaves(net, channels, _text_width(config)), config)


def _text_width(config: Mapping[str, Any]) -> int:
  return config.get('caption_channels') or 4096


def _leaves(net: PixArt, channels: int, text: int) -> dict[str, Leaf]:
  cond = {'text': jnp.zeros((1, 1, text)), 'size': jnp.zeros((1, 2)), 'aspect': jnp.zeros(1)}
  shapes = flat_shapes(net.init, jnp.zeros((1, net.patch, net.patch, channels)), jnp.zeros(1), cond)
  return {path: _leaf(net, path, shape) for path, shape in shapes.items()}


def _leaf(net: PixArt, path: str, shape: Shape) -> Leaf:
  if path == 'blocks/table':
    names = tuple(f'transformer_blocks.{i}.scale_shift_table' for i in range(net.depth))
    return Leaf(names, shape, (0, 1), shape[1:], apart=(0,))
  if path.startswith('blocks/'):
    return stack_leaf(path.removeprefix('blocks/'), shape, blocks='transformer_blocks.{}', modules=_BLOCK)
  if path == 'table':
    return Leaf(('scale_shift_table',), shape, (0, 1), shape)
  module, _, parameter = path.rpartition('/')
  if path == 'patch_embed/kernel':
    return patches('pos_embed.proj.weight', shape, net.patch)
  name, layout = ('pos_embed.proj', linear) if module == 'patch_embed' else _ENDS[module]
  return vector(f'{name}.bias', shape) if parameter == 'bias' else kernel(f'{name}.weight', shape, layout)
