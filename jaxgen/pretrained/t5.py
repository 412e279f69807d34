"""T5 v1.1's encoder from and to transformers' folders; a decoder beside it is left out."""

from typing import Any

import jax.numpy as jnp

from jaxgen.models.t5 import T5Encoder
from jaxgen.pretrained import folder
from jaxgen.pretrained.layout import Layout, Meta
from jaxgen.pretrained.state_dict import (
  Module,
  Tensors,
  encoder_leaves,
  flat_shapes,
  from_heads,
  linear,
  table,
  to_heads,
)
from jaxgen.typing import Params

CLASSES = ('T5EncoderModel', 'T5ForConditionalGeneration', 'T5Model')
_TABLE, _TIED = 'shared.weight', 'encoder.embed_tokens.weight'
_FIRST = 'layer.0.SelfAttention'
_BLOCK = {
  'norm1': Module(('layer.0.layer_norm',), table),
  'attention/qkv': Module((f'{_FIRST}.q', f'{_FIRST}.k', f'{_FIRST}.v'), to_heads),
  'attention/out': Module((f'{_FIRST}.o',), from_heads),
  'norm2': Module(('layer.1.layer_norm',), table),
  'mlp/gate': Module(('layer.1.DenseReluDense.wi_0',), linear),
  'mlp/in': Module(('layer.1.DenseReluDense.wi_1',), linear),
  'mlp/out': Module(('layer.1.DenseReluDense.wo',), linear),
}
_ENDS = {
  'token_embed/embedding': (_TABLE, table),
  'relative_bias': (f'encoder.block.0.{_FIRST}.relative_attention_bias.weight', table),
  'norm_out/scale': ('encoder.final_layer_norm.weight', None),
}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of transformers with this configuration.

  Raises:
    ValueError: it is not of T5 v1.1: its MLP has no gate.
  """
  # A gated-gelu of transformers is gelu_new, whatever dense_act_fn says.
  folder.expect(config, {'feed_forward_proj': 'gated-gelu', 'layer_norm_epsilon': 1e-6})
  if 'feed_forward_proj' not in config:
    raise ValueError('this T5 is of version 1.0, whose MLP has no gate; wanted feed_forward_proj gated-gelu (T5 v1.1)')
  net = T5Encoder(
    config.get('d_model', 512),
    config.get('d_ff', 2048),
    config.get('num_layers', 6),
    config.get('num_heads', 8),
    config.get('d_kv', 64),
    vocabulary=config.get('vocab_size', 32128),
    buckets=config.get('relative_attention_num_buckets', 32),
    max_distance=config.get('relative_attention_max_distance', 128),
    dtype=dtype,
  )
  return layout(net, config)


def write(net: T5Encoder, params: Params, meta: Meta) -> Layout:
  """The layout of an encoder to be written as transformers does."""
  del params
  return layout(net, dict(meta.config) | configuration(net))


def layout(net: T5Encoder, config: folder.Config, *, prefix: str = '') -> Layout:
  """The layout of an encoder, whose tensors' names start with `prefix`."""
  shapes = flat_shapes(net.init, jnp.zeros((1, 1), jnp.int32))
  leaves = encoder_leaves(shapes, ends=_ENDS, blocks='encoder.block.{}', modules=_BLOCK, prefix=prefix)
  return Layout(net, leaves, config, folder.TRANSFORMERS, _own)


def configuration(net: T5Encoder) -> folder.Config:
  """The inverse of `read`'s network."""
  return {
    'architectures': ['T5EncoderModel'],
    'model_type': 't5',
    'd_model': net.width,
    'd_ff': net.hidden,
    'd_kv': net.head_size,
    'num_layers': net.depth,
    'num_heads': net.heads,
    'vocab_size': net.vocabulary,
    'relative_attention_num_buckets': net.buckets,
    'relative_attention_max_distance': net.max_distance,
    'feed_forward_proj': 'gated-gelu',
    'layer_norm_epsilon': 1e-6,
    'is_encoder_decoder': False,
    'use_cache': False,
    'eos_token_id': 1,
    'pad_token_id': 0,
  }


def _own(tensors: Tensors) -> Tensors:
  """The encoder's; its table has two names, of which a file may have either or both."""
  own = {name: tensor for name, tensor in tensors.items() if not name.startswith(('decoder.', 'lm_head.'))}
  tied = own.pop(_TIED, None)
  return own if tied is None else {_TABLE: tied} | own
