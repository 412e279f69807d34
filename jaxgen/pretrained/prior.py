"""DALL-E 2's prior from and to diffusers' folders, and how a decoder of its kind takes an embedding."""

from typing import Any

import jax.numpy as jnp

from jaxgen.models.prior import MORE, Prior
from jaxgen.models.unclip import EmbeddingProjection
from jaxgen.pretrained import folder
from jaxgen.pretrained.layout import Layout, Meta
from jaxgen.pretrained.state_dict import (
  Leaf,
  Module,
  Shape,
  encoder_leaves,
  flat_shapes,
  from_heads,
  kernel,
  linear,
  table,
  to_heads,
  vector,
)
from jaxgen.typing import Params

CLASSES = ('PriorTransformer',)
PROJECTIONS = ('UnCLIPTextProjModel',)
_BLOCK = {
  'norm1': Module(('norm1',), table),
  'attention/qkv': Module(('attn1.to_q', 'attn1.to_k', 'attn1.to_v'), to_heads),
  'attention/out': Module(('attn1.to_out.0',), from_heads),
  'norm2': Module(('norm3',), table),
  'mlp/in': Module(('ff.net.0.proj',), linear),
  'mlp/out': Module(('ff.net.2',), linear),
}
_LINEAR = {
  'time_embed/in': 'time_embedding.linear_1',
  'time_embed/out': 'time_embedding.linear_2',
  'text_embed': 'encoder_hidden_states_proj',
  'pooled_embed': 'embedding_proj',
  'embed': 'proj_in',
  'out': 'proj_to_clip_embeddings',
}
_ROWS = {'query': 'prd_embedding', 'position_embed': 'positional_embedding', 'mean': 'clip_mean', 'std': 'clip_std'}
_FRONT = {'query': (1, 1), 'position_embed': (1,), 'mean': (1,), 'std': (1,)}  # axes of size 1 before those here
_PROJECTION = {
  'pooled_time': 'embedding_proj',
  'embedding_time': 'clip_image_embeddings_project_to_time_embeddings',
  'text_embed': 'encoder_hidden_states_proj',
}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of diffusers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  heads, size = config.get('num_attention_heads', 32), config.get('attention_head_dim', 64)
  width, features = heads * size, config.get('embedding_dim', 768)
  folder.expect(
    config,
    {
      'additional_embeddings': MORE,
      'time_embed_act_fn': 'silu',
      'norm_in_type': None,
      'embedding_proj_norm_type': None,
      'encoder_hid_proj_type': 'linear',
      'added_emb_type': 'prd',
      'time_embed_dim': config.get('time_embed_dim') and width,
      'embedding_proj_dim': config.get('embedding_proj_dim') and features,
      'clip_embed_dim': config.get('clip_embed_dim') and features,
    },
  )
  net = Prior(depth=config.get('num_layers', 20), width=width, heads=heads, dtype=dtype)
  return Layout(net, _leaves(net, features, config.get('num_embeddings', 77)), config)


def write(net: Prior, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as diffusers does."""
  features, tokens = params['mean'].shape[0], params['position_embed'].shape[0] - MORE
  config = dict(meta.config) | {
    '_class_name': 'PriorTransformer',
    'num_attention_heads': net.heads,
    'attention_head_dim': net.width // net.heads,
    'num_layers': net.depth,
    'embedding_dim': features,
    'num_embeddings': tokens,
    'additional_embeddings': MORE,
  }
  return Layout(net, _leaves(net, features, tokens), config)


def read_projection(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of diffusers' UnCLIPTextProjModel with this configuration."""
  folder.require(config, 'time_embed_dim', 'cross_attention_dim')
  net = EmbeddingProjection(
    width=config['cross_attention_dim'],
    time=config['time_embed_dim'],
    tokens=config.get('clip_extra_context_tokens', 4),
    dtype=dtype,
  )
  return Layout(net, _projection_leaves(net, config.get('clip_embeddings_dim', 768)), config)


def write_projection(net: EmbeddingProjection, params: Params, meta: Meta) -> Layout:
  """The layout of a projection to be written as diffusers does."""
  features = params['null'].shape[0]
  config = dict(meta.config) | {
    '_class_name': 'UnCLIPTextProjModel',
    'clip_extra_context_tokens': net.tokens,
    'clip_embeddings_dim': features,
    'time_embed_dim': net.time,
    'cross_attention_dim': net.width,
  }
  return Layout(net, _projection_leaves(net, features), config)


def _leaves(net: Prior, features: int, tokens: int) -> dict[str, Leaf]:
  cond = {'text': jnp.zeros((1, tokens, features)), 'pooled': jnp.zeros((1, features))}
  shapes = flat_shapes(net.init, jnp.zeros((1, 1, features)), jnp.zeros(1), cond)
  others = {path: shape for path, shape in shapes.items() if not path.startswith(('blocks/', 'norm_out/'))}
  stack = encoder_leaves(
    {path: shape for path, shape in shapes.items() if path not in others},
    ends={'norm_out/scale': ('norm_out.weight', None), 'norm_out/bias': ('norm_out.bias', None)},
    blocks='transformer_blocks.{}',
    modules=_BLOCK,
  )
  return stack | {path: _leaf(path, shape) for path, shape in others.items()}


def _leaf(path: str, shape: Shape) -> Leaf:
  if path in _ROWS:
    return Leaf((_ROWS[path],), shape, tuple(range(len(shape))), (*_FRONT[path], *shape))
  module, _, parameter = path.rpartition('/')
  name = _LINEAR[module]
  return vector(f'{name}.bias', shape) if parameter == 'bias' else kernel(f'{name}.weight', shape, linear)


def _projection_leaves(net: EmbeddingProjection, features: int) -> dict[str, Leaf]:
  row = jnp.zeros((1, features))
  shapes = flat_shapes(net.init, row, row, jnp.zeros((1, 1, features)))
  return {path: _projection_leaf(path, shape) for path, shape in shapes.items()}


def _projection_leaf(path: str, shape: Shape) -> Leaf:
  if path == 'null':
    return vector('learned_classifier_free_guidance_embeddings', shape)
  module, _, parameter = path.rpartition('/')
  if module == 'text_norm':
    return vector(f'text_encoder_hidden_states_norm.{"bias" if parameter == "bias" else "weight"}', shape)
  if module == 'tokens':  # (features, token, width) here, (width, token) of the rows there
    name = 'clip_extra_context_tokens_proj'
    if parameter == 'bias':
      return Leaf((f'{name}.bias',), shape, (1, 0), (shape[0] * shape[1],))
    return Leaf((f'{name}.weight',), shape, (2, 1, 0), (shape[1] * shape[2], shape[0]))
  name = _PROJECTION[module]
  return vector(f'{name}.bias', shape) if parameter == 'bias' else kernel(f'{name}.weight', shape, linear)
