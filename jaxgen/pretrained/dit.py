"""DiT from and to diffusers' folders, and the original PyTorch code's files (`DiT-XL-2-256x256.pt`), bit for bit.

  original     one embedding of time and label; queries, keys and values are one tensor; the fixed positions are kept
  diffusers    equal embeddings in each block; three tensors; no positions

diffusers' own forward pass differs: its sinusoid of time ends at 10000^-1, the original's, with which the published
weights were trained, one frequency short of it. Its config.json does not say which a network was trained with; without
an entry `downscale_freq_shift` it is taken to be the original's, 0. One that diffusers itself has trained needs 1.
"""

import logging
from typing import Any

import jax.numpy as jnp

from jaxgen.models.dit import DiT
from jaxgen.models.layers.embedding import sincos_2d
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
  table,
  to_heads,
  to_qkv,
  vector,
)
from jaxgen.typing import Params

CLASSES = ('DiTTransformer2DModel', 'Transformer2DModel')
POSITIONS = 'pos_embed'
SHIFT = 'downscale_freq_shift'
_LATER = ('interval', 'qk_norm', 'rms_norm', 'swiglu', 'rope', 'registers', 'bottleneck')  # fields of DiT

_ORIGINAL = {
  'modulation': Module(('adaLN_modulation.1',), to_heads),
  'attention/qkv': Module(('attn.qkv',), to_qkv),
  'attention/out': Module(('attn.proj',), from_heads),
  'mlp/in': Module(('mlp.fc1',), linear),
  'mlp/out': Module(('mlp.fc2',), linear),
}
_DIFFUSERS = {
  'modulation': Module(('norm1.linear',), to_heads),
  'attention/qkv': Module(('attn1.to_q', 'attn1.to_k', 'attn1.to_v'), to_heads),
  'attention/out': Module(('attn1.to_out.0',), from_heads),
  'mlp/in': Module(('ff.net.0.proj',), linear),
  'mlp/out': Module(('ff.net.2',), linear),
}
# Module here -> (original, diffusers, layout); a name with `{}` is of a copy in each block.
_EMBEDDING = 'transformer_blocks.{}.norm1.emb'
_ENDS = {
  'patch_embed': ('x_embedder.proj', 'pos_embed.proj', None),
  'time_embed/in': ('t_embedder.mlp.0', f'{_EMBEDDING}.timestep_embedder.linear_1', linear),
  'time_embed/out': ('t_embedder.mlp.2', f'{_EMBEDDING}.timestep_embedder.linear_2', linear),
  'label_embed/table': ('y_embedder.embedding_table', f'{_EMBEDDING}.class_embedder.embedding_table', table),
  'final/modulation': ('final_layer.adaLN_modulation.1', 'proj_out_1', to_heads),
  'final/linear': ('final_layer.linear', 'proj_out_2', linear),
}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of diffusers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  channels, heads = config.get('in_channels', 4), config.get('num_attention_heads', 16)
  doubled = config.get('out_channels') == 2 * channels
  folder.expect(
    config,
    {
      'out_channels': 2 * channels if doubled else config.get('out_channels') and channels,
      'attention_bias': True,
      'activation_fn': 'gelu-approximate',
      'norm_type': 'ada_norm_zero',
      'norm_elementwise_affine': False,
    },
  )
  if config.get(SHIFT) is None:
    logging.warning(
      'this config.json has no %s, and the sinusoid of time is that of the published DiT (0); where diffusers '
      'itself has trained the network, add "%s": 1',
      SHIFT,
      SHIFT,
    )
  net = DiT(
    frequency_shift=config.get(SHIFT) or 0,
    patch=config.get('patch_size', 2),
    depth=config.get('num_layers', 28),
    width=heads * config.get('attention_head_dim', 72),
    heads=heads,
    num_classes=config.get('num_embeds_ada_norm', 1000),
    learn_sigma=doubled,
    dtype=dtype,
  )
  return Layout(net, _leaves(net, channels, diffusers=True), config)


def write(net: DiT, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as diffusers does; `meta.config` has the side of its images, `sample_size`.

  Raises:
    ValueError: diffusers has no such network, or the side is not known.
  """
  channels = params['patch_embed']['kernel'].shape[0] // net.patch**2
  if not net.num_classes:
    raise ValueError("diffusers' DiT has classes; this one has none")
  if 'sample_size' not in meta.config:
    raise ValueError("diffusers' DiT is of square images of one size; give meta.config['sample_size']")
  config = dict(meta.config) | {
    '_class_name': 'DiTTransformer2DModel',
    'num_attention_heads': net.heads,
    'attention_head_dim': net.width // net.heads,
    'in_channels': channels,
    'out_channels': channels * (1 + net.learn_sigma),
    'num_layers': net.depth,
    'patch_size': net.patch,
    'num_embeds_ada_norm': net.num_classes,
    'activation_fn': 'gelu-approximate',
    'attention_bias': True,
    'norm_type': 'ada_norm_zero',
    'norm_elementwise_affine': False,
    'dropout': 0.0,
    SHIFT: net.frequency_shift,
    'norm_num_groups': 32,
    'upcast_attention': False,
  }
  return Layout(net, _leaves(net, channels, diffusers=True), config)


def original(net: DiT, *, image_shape: tuple[int, int, int]) -> Layout:
  """The layout of the original code's file.

  Args:
    net: the network.
    image_shape: (height, width, channels) of the images that it is trained on, which the fixed positions are of.

  Raises:
    ValueError: the original code has no such network.
  """
  if net.frequency_shift:
    raise ValueError(f"the original DiT's sinusoid of time has no shift; frequency_shift is {net.frequency_shift}")
  height, width, channels = image_shape
  positions = sincos_2d(height // net.patch, width // net.patch, net.width)[None]
  return Layout(net, _leaves(net, channels, diffusers=False), {}, fixed={POSITIONS: positions})


def _leaves(net: DiT, channels: int, *, diffusers: bool) -> dict[str, Leaf]:
  later = [name for name in _LATER if getattr(net, name)]
  if later:
    raise ValueError(f'the published DiT has none of {later}; leave them off to exchange weights with it')
  image = jnp.zeros((1, net.patch, net.patch, channels))
  shapes = flat_shapes(net.init, image, jnp.zeros(1), {'label': jnp.zeros(1, jnp.int32)})
  blocks, modules = ('transformer_blocks.{}', _DIFFUSERS) if diffusers else ('blocks.{}', _ORIGINAL)
  leaves = {}
  for path, shape in shapes.items():
    if path.startswith('blocks/'):
      leaves[path] = stack_leaf(path.removeprefix('blocks/'), shape, blocks=blocks, modules=modules)
    else:
      leaves[path] = _end(path, shape, net, diffusers)
  return leaves


def _end(path: str, shape: Shape, net: DiT, diffusers: bool) -> Leaf:
  module, _, parameter = path.rpartition('/')
  in_original, in_diffusers, of = _ENDS[module]
  name = f'{in_diffusers if diffusers else in_original}.{"bias" if parameter == "bias" else "weight"}'
  if parameter == 'bias':
    leaf = vector(name, shape)
  elif of is None:
    leaf = patches(name, shape, net.patch)
  else:
    leaf = kernel(name, shape, of)
  if '{}' in name:
    return leaf._replace(names=tuple(name.format(i) for i in range(net.depth)), copies=True)
  return leaf
