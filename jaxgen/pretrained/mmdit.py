"""MMDiT from and to diffusers' folders: the transformers of Stable Diffusion 3 and 3.5 and of Flux.

What differs is more than names: queries, keys and values are three tensors; the last modulations are (scale, shift)
there; Flux's patches are (channel, row, column) there; Stable Diffusion 3 keeps its table of positions beside them.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.models.layers.embedding import sincos_at
from jaxgen.models.mmdit import MMDiT
from jaxgen.pretrained import folder
from jaxgen.pretrained.layout import Layout, Meta
from jaxgen.pretrained.state_dict import (
  Leaf,
  Module,
  Shape,
  Tensors,
  flat_shapes,
  from_heads,
  kernel,
  linear,
  patches,
  stack_leaf,
  table,
  to_heads,
  vector,
)
from jaxgen.typing import Params

CLASSES = ('SD3Transformer2DModel', 'FluxTransformer2DModel')
_POSITIONS = 'pos_embed.pos_embed'
_PATCH = 2

_JOINT = {
  'image/modulation': Module(('norm1.linear',), to_heads),
  'text/modulation': Module(('norm1_context.linear',), to_heads),
  'attention/image_qkv': Module(('attn.to_q', 'attn.to_k', 'attn.to_v'), to_heads),
  'attention/image_out': Module(('attn.to_out.0',), from_heads),
  'attention/image_q_norm': Module(('attn.norm_q',), table),
  'attention/image_k_norm': Module(('attn.norm_k',), table),
  'attention/text_qkv': Module(('attn.add_q_proj', 'attn.add_k_proj', 'attn.add_v_proj'), to_heads),
  'attention/text_out': Module(('attn.to_add_out',), from_heads),
  'attention/text_q_norm': Module(('attn.norm_added_q',), table),
  'attention/text_k_norm': Module(('attn.norm_added_k',), table),
  'image_attention/qkv': Module(('attn2.to_q', 'attn2.to_k', 'attn2.to_v'), to_heads),
  'image_attention/out': Module(('attn2.to_out.0',), from_heads),
  'image_attention/q_norm': Module(('attn2.norm_q',), table),
  'image_attention/k_norm': Module(('attn2.norm_k',), table),
  'image_mlp/in': Module(('ff.net.0.proj',), linear),
  'image_mlp/out': Module(('ff.net.2',), linear),
  'text_mlp/in': Module(('ff_context.net.0.proj',), linear),
  'text_mlp/out': Module(('ff_context.net.2',), linear),
}
_SINGLE = {
  'modulation': Module(('norm.linear',), to_heads),
  'qkv': Module(('attn.to_q', 'attn.to_k', 'attn.to_v'), to_heads),
  'q_norm': Module(('attn.norm_q',), table),
  'k_norm': Module(('attn.norm_k',), table),
  'in': Module(('proj_mlp',), linear),
  'out': Module(('proj_out',), linear),
}
_ENDS = {
  'time_embed/in': ('time_text_embed.timestep_embedder.linear_1', linear),
  'time_embed/out': ('time_text_embed.timestep_embedder.linear_2', linear),
  'pooled_embed/in': ('time_text_embed.text_embedder.linear_1', linear),
  'pooled_embed/out': ('time_text_embed.text_embedder.linear_2', linear),
  'guidance_embed/in': ('time_text_embed.guidance_embedder.linear_1', linear),
  'guidance_embed/out': ('time_text_embed.guidance_embedder.linear_2', linear),
  'text_embed': ('context_embedder', linear),
  'final/modulation': ('norm_out.linear', to_heads),
}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of diffusers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  net = _flux(config, dtype) if _is_flux(config) else _sd3(config, dtype)
  return Layout(net, _leaves(net, *_widths(config)), config, own=_without_positions)


def write(net: MMDiT, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as diffusers does; `meta.config` has SD3's `sample_size`.

  Raises:
    ValueError: diffusers has no such network.
  """
  config = dict(meta.config) | configuration(net, params)
  fixed = {}
  if not net.rope and net.table is not None:
    size, base = net.table
    places = np.arange(size) * base / size
    fixed = {_POSITIONS: sincos_at(places, places, net.width)[None]}
  return Layout(net, _leaves(net, *_widths(config)), config, fixed=fixed)


def configuration(net: MMDiT, params: Params) -> folder.Config:
  """The inverse of `read`'s network, whose widths are those of its parameters."""
  text, pooled = (params[name]['kernel'].shape[0] for name in ('text_embed', 'patch_embed'))
  pooled, seen = params['pooled_embed']['in']['kernel'].shape[0], pooled
  channels = seen // _PATCH**2
  shared = {
    'attention_head_dim': net.width // net.heads,
    'num_attention_heads': net.heads,
    'num_layers': net.depth,
    'joint_attention_dim': text,
    'pooled_projection_dim': pooled,
  }
  if net.patch != _PATCH or net.mlp_ratio != 4:
    raise ValueError(
      f'diffusers has no MMDiT of patches of {net.patch} and MLPs of {net.mlp_ratio} widths, only 2 and 4'
    )
  if net.rope:
    return shared | {
      '_class_name': 'FluxTransformer2DModel',
      'in_channels': seen,
      'patch_size': 1,
      'num_single_layers': net.single,
      'guidance_embeds': net.guidance,
      'axes_dims_rope': list(net.rope),
    }
  if net.table is None or net.single:
    raise ValueError('diffusers has no MMDiT of sin-cos positions without a table, or with single blocks; set `table`')
  return shared | {
    '_class_name': 'SD3Transformer2DModel',
    'in_channels': channels,
    'out_channels': channels,
    'patch_size': net.patch,
    'caption_projection_dim': net.width,
    'sample_size': net.table[1] * net.patch,
    'pos_embed_max_size': net.table[0],
    'dual_attention_layers': list(range(net.dual)),
    'qk_norm': 'rms_norm' if net.qk_norm else None,
  }


def _is_flux(config: Mapping[str, Any]) -> bool:
  return config['_class_name'] == 'FluxTransformer2DModel'


def _sd3(config: Mapping[str, Any], dtype: Any) -> MMDiT:
  heads, size = config.get('num_attention_heads', 18), config.get('attention_head_dim', 64)
  dual = list(config.get('dual_attention_layers') or ())
  folder.expect(
    config,
    {
      'patch_size': _PATCH,
      'caption_projection_dim': heads * size,
      'out_channels': config.get('out_channels') and config.get('in_channels', 16),
      'dual_attention_layers': list(range(len(dual))),
      'qk_norm': 'rms_norm' if config.get('qk_norm') else None,
    },
  )
  return MMDiT(
    patch=_PATCH,
    depth=config.get('num_layers', 18),
    width=heads * size,
    heads=heads,
    dual=len(dual),
    qk_norm=bool(config.get('qk_norm')),
    table=(config.get('pos_embed_max_size', 96), config.get('sample_size', 128) // _PATCH),
    dtype=dtype,
  )


def _flux(config: Mapping[str, Any], dtype: Any) -> MMDiT:
  heads, size = config.get('num_attention_heads', 24), config.get('attention_head_dim', 128)
  folder.expect(config, {'patch_size': 1, 'out_channels': config.get('out_channels') and config.get('in_channels', 64)})
  return MMDiT(
    patch=_PATCH,
    depth=config.get('num_layers', 19),
    width=heads * size,
    heads=heads,
    single=config.get('num_single_layers', 38),
    qk_norm=True,
    rope=tuple(config.get('axes_dims_rope', (16, 56, 56))),
    guidance=bool(config.get('guidance_embeds', False)),
    dtype=dtype,
  )


def _widths(config: Mapping[str, Any]) -> tuple[int, int, int]:
  """Channels of the image, features of a token of text, and of the pooled text."""
  channels = config.get('in_channels', 64) // _PATCH**2 if _is_flux(config) else config.get('in_channels', 16)
  pooled = config.get('pooled_projection_dim', 768 if _is_flux(config) else 2048)
  return channels, config.get('joint_attention_dim', 4096), pooled


def _without_positions(tensors: Tensors) -> Tensors:
  return {name: tensor for name, tensor in tensors.items() if name != _POSITIONS}


def _leaves(net: MMDiT, channels: int, text: int, pooled: int) -> dict[str, Leaf]:
  cond = {'text': jnp.zeros((1, 1, text)), 'pooled': jnp.zeros((1, pooled)), 'guidance': jnp.zeros(1)}
  shapes = flat_shapes(net.init, jnp.zeros((1, net.patch, net.patch, channels)), jnp.zeros(1), cond)
  return {path: _leaf(net, path, shape) for path, shape in shapes.items()}


def _leaf(net: MMDiT, path: str, shape: Shape) -> Leaf:
  stack, _, within = path.partition('/')
  joint = 'transformer_blocks.{}'
  if stack == 'dual_blocks':
    return stack_leaf(within, shape, blocks=joint, modules=_JOINT)
  if stack == 'blocks':
    return stack_leaf(within, shape, blocks=joint, modules=_JOINT, start=net.dual)
  if stack == 'single_blocks':
    return stack_leaf(within, shape, blocks='single_transformer_blocks.{}', modules=_SINGLE)
  if stack == 'last_block':
    leaf = stack_leaf(within, (1, *shape), blocks=joint, modules=_JOINT, start=net.depth - 1).of_one()
    return _swapped(leaf) if within.startswith('text/modulation') else leaf
  return _end(net, path, shape)


def _end(net: MMDiT, path: str, shape: Shape) -> Leaf:
  module, _, parameter = path.rpartition('/')
  ending = 'bias' if parameter == 'bias' else 'weight'
  if module in ('patch_embed', 'final/linear'):
    return patch_leaf(net, module, shape, ending)
  name, layout = _ENDS[module]
  name = f'{name}.{ending}'
  leaf = vector(name, shape) if parameter == 'bias' else kernel(name, shape, layout)
  return _swapped(leaf) if module == 'final/modulation' else leaf


def patch_leaf(net: MMDiT, module: str, shape: Shape, ending: str) -> Leaf:
  """Leaves of the layers that read and write patches, which are (row, column, channel) here."""
  p = net.patch
  if module == 'patch_embed':
    name = f'{"x_embedder" if net.rope else "pos_embed.proj"}.{ending}'
    if ending == 'bias':
      return vector(name, shape)
    leaf = patches(name, shape, p)
    return leaf._replace(tensor_shape=shape[::-1]) if net.rope else leaf
  name = f'proj_out.{ending}'
  if not net.rope:
    return vector(name, shape) if ending == 'bias' else kernel(name, shape, linear)
  if ending == 'bias':
    return Leaf((name,), shape, (2, 0, 1), shape, view=(p, p, shape[0] // p**2))
  return Leaf((name,), shape, (3, 1, 2, 0), shape[::-1], view=(shape[0], p, p, shape[1] // p**2))


def _swapped(leaf: Leaf) -> Leaf:
  """(shift, scale) here, (scale, shift) there: the axis before the last is reversed."""
  return leaf._replace(flip=(len(leaf.shape) - 2,))
