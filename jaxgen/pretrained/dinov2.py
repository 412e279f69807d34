"""DINOv2 from and to transformers' folders (facebook/dinov2-small, -base, -large)."""

import re
from typing import Any

import jax.numpy as jnp

from jaxgen.models.dinov2 import DINOv2
from jaxgen.pretrained import folder
from jaxgen.pretrained.layout import Layout, Meta
from jaxgen.pretrained.state_dict import (
  Leaf,
  Leaves,
  Module,
  Tensors,
  conv,
  encoder_leaves,
  flat_shapes,
  from_heads,
  linear,
  table,
  to_heads,
)
from jaxgen.typing import Params

CLASSES = ('Dinov2Model',)
_BLOCKS = 'encoder.layer.{}'
_SCALE = re.compile(r'blocks/scale(\d)')
_BLOCK = {
  'norm1': Module(('norm1',), table),
  'attention/qkv': Module(tuple(f'attention.attention.{name}' for name in ('query', 'key', 'value')), to_heads),
  'attention/out': Module(('attention.output.dense',), from_heads),
  'norm2': Module(('norm2',), table),
  'mlp/in': Module(('mlp.fc1',), linear),
  'mlp/out': Module(('mlp.fc2',), linear),
}
_ENDS = {
  'patch_embed/kernel': ('embeddings.patch_embeddings.projection.weight', conv),
  'patch_embed/bias': ('embeddings.patch_embeddings.projection.bias', None),
  'norm_out/scale': ('layernorm.weight', None),
  'norm_out/bias': ('layernorm.bias', None),
}
_UNUSED = 'embeddings.mask_token'  # used in its training alone


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of transformers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  wanted = {'num_channels': 3, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-6, 'qkv_bias': True, 'use_swiglu_ffn': False}
  folder.expect(config, wanted)
  width = config.get('hidden_size', 768)
  net = DINOv2(
    width,
    config.get('num_hidden_layers', 12),
    config.get('num_attention_heads', 12),
    int(width * config.get('mlp_ratio', 4)),
    config.get('patch_size', 14),
    config.get('image_size', 224),
    dtype=dtype,
  )
  return Layout(net, _leaves(net), config, folder.TRANSFORMERS, _own)


def write(net: DINOv2, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as transformers does."""
  del params
  if net.hidden % net.width:
    raise ValueError(f'the MLP has {net.hidden} features; transformers takes a multiple of the width, {net.width}')
  config = dict(meta.config) | {
    'architectures': ['Dinov2Model'],
    'model_type': 'dinov2',
    'hidden_size': net.width,
    'num_hidden_layers': net.depth,
    'num_attention_heads': net.heads,
    'mlp_ratio': net.hidden // net.width,
    'patch_size': net.patch,
    'image_size': net.size,
    'use_mask_token': False,
  }
  return Layout(net, _leaves(net), config, folder.TRANSFORMERS, _own)


def _leaves(net: DINOv2) -> Leaves:
  shapes = flat_shapes(net.init, jnp.zeros((1, net.patch, net.patch, 3)))
  classes, positions = shapes.pop('class_embed'), shapes.pop('position_embed')
  scales = {path: shapes.pop(path) for path in list(shapes) if _SCALE.fullmatch(path)}
  leaves = encoder_leaves(shapes, ends=_ENDS, blocks=_BLOCKS, modules=_BLOCK)
  leaves['class_embed'] = Leaf(('embeddings.cls_token',), classes, (0,), (1, 1, *classes))
  leaves['position_embed'] = Leaf(('embeddings.position_embeddings',), positions, (0, 1), (1, *positions))
  for path, shape in scales.items():
    number = path[-1]
    names = tuple(f'{_BLOCKS.format(i)}.layer_scale{number}.lambda1' for i in range(net.depth))
    leaves[path] = Leaf(names, shape, (0,), shape[1:], (0,))
  return leaves


def _own(tensors: Tensors) -> Tensors:
  return {name: tensor for name, tensor in tensors.items() if name != _UNUSED}
