"""Z-Image's transformer from and to diffusers' folders."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxgen.models.z_image import ZImage
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
  stack_leaf,
  table,
  to_heads,
  vector,
)
from jaxgen.typing import Params

CLASSES = ('ZImageTransformer2DModel',)
_BLOCK = {
  'modulation': Module(('adaLN_modulation.0',), to_heads),
  'qkv': Module(('attention.to_q', 'attention.to_k', 'attention.to_v'), to_heads),
  'q_norm': Module(('attention.norm_q',), table),
  'k_norm': Module(('attention.norm_k',), table),
  'out': Module(('attention.to_out.0',), from_heads),
  'norm1': Module(('attention_norm1',), table),
  'norm2': Module(('attention_norm2',), table),
  'norm3': Module(('ffn_norm1',), table),
  'norm4': Module(('ffn_norm2',), table),
  'gate': Module(('feed_forward.w1',), linear),
  'in': Module(('feed_forward.w3',), linear),
  'down': Module(('feed_forward.w2',), linear),
}
_STACKS = {'blocks': 'layers.{}', 'refine_image': 'noise_refiner.{}', 'refine_text': 'context_refiner.{}'}
_PADS = {'image_pad': 'x_pad_token', 'text_pad': 'cap_pad_token'}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of diffusers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  heads, (patch, *more) = config.get('n_heads', 30), config.get('all_patch_size', (2,))
  folder.expect(
    config,
    {
      'all_patch_size': [patch] if not more else None,
      'all_f_patch_size': [1],
      'n_kv_heads': heads,
      'qk_norm': True,
      'siglip_feat_dim': None,
      't_scale': 1000.0,
    },
  )
  net = ZImage(
    depth=config.get('n_layers', 30),
    width=config.get('dim', 3840),
    heads=heads,
    refiners=config.get('n_refiner_layers', 2),
    patch=patch,
    rope=tuple(config.get('axes_dims', (32, 48, 48))),
    theta=config.get('rope_theta', 256.0),
    eps=config.get('norm_eps', 1e-5),
    dtype=dtype,
  )
  return Layout(net, _leaves(net, *_widths(config)), config)


def write(net: ZImage, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as diffusers does."""
  config = dict(meta.config) | {
    '_class_name': 'ZImageTransformer2DModel',
    'all_patch_size': [net.patch],
    'all_f_patch_size': [1],
    'in_channels': params['patch_embed']['kernel'].shape[0] // net.patch**2,
    'dim': net.width,
    'n_layers': net.depth,
    'n_refiner_layers': net.refiners,
    'n_heads': net.heads,
    'n_kv_heads': net.heads,
    'norm_eps': net.eps,
    'qk_norm': True,
    'cap_feat_dim': params['text_embed']['kernel'].shape[0],
    'rope_theta': net.theta,
    'axes_dims': list(net.rope),
  }
  return Layout(net, _leaves(net, *_widths(config)), config)


def _widths(config: Mapping[str, Any]) -> tuple[int, int]:
  """Channels of the image, and features of a token of text."""
  return config.get('in_channels', 16), config.get('cap_feat_dim', 2560)


def _leaves(net: ZImage, channels: int, text: int) -> dict[str, Leaf]:
  cond = {'text': jnp.zeros((1, 1, text))}
  shapes = flat_shapes(net.init, jnp.zeros((1, net.patch, net.patch, channels)), jnp.zeros(1), cond)
  return {path: _leaf(net, path, shape) for path, shape in shapes.items()}


def _leaf(net: ZImage, path: str, shape: Shape) -> Leaf:
  stack, _, within = path.partition('/')
  if stack in _STACKS:
    return stack_leaf(within, shape, blocks=_STACKS[stack], modules=_BLOCK)
  if path in _PADS:
    return Leaf((_PADS[path],), shape, (0,), (1, *shape))
  ends = {
    'time_in': 't_embedder.mlp.0',
    'time_out': 't_embedder.mlp.2',
    'text_norm': 'cap_embedder.0',
    'text_embed': 'cap_embedder.1',
    'patch_embed': f'all_x_embedder.{net.patch}-1',
    'final_modulation': f'all_final_layer.{net.patch}-1.adaLN_modulation.1',
    'final': f'all_final_layer.{net.patch}-1.linear',
  }
  module, _, parameter = path.rpartition('/')
  name = ends[module]
  if parameter == 'kernel':
    return kernel(f'{name}.weight', shape, linear)
  return vector(f'{name}.{"bias" if parameter == "bias" else "weight"}', shape)
