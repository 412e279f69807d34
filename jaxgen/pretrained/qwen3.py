"""Qwen3 from and to transformers' folders; a head beside it is left out."""

from typing import Any

import jax.numpy as jnp

from jaxgen.models.qwen3 import Qwen3
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

CLASSES = ('Qwen3Model', 'Qwen3ForCausalLM')
_PREFIX = 'model.'
_BLOCK = {
  'norm1': Module(('input_layernorm',), table),
  'query': Module(('self_attn.q_proj',), to_heads),
  'key': Module(('self_attn.k_proj',), to_heads),
  'value': Module(('self_attn.v_proj',), to_heads),
  'q_norm': Module(('self_attn.q_norm',), table),
  'k_norm': Module(('self_attn.k_norm',), table),
  'out': Module(('self_attn.o_proj',), from_heads),
  'norm2': Module(('post_attention_layernorm',), table),
  'gate': Module(('mlp.gate_proj',), linear),
  'in': Module(('mlp.up_proj',), linear),
  'down': Module(('mlp.down_proj',), linear),
}
_ENDS = {
  'token_embed/embedding': ('embed_tokens.weight', table),
  'norm_out/scale': ('norm.weight', None),
}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of transformers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  folder.require(config, 'hidden_size', 'num_hidden_layers', 'num_attention_heads')
  rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
  folder.expect(config, {'hidden_act': 'silu', 'attention_bias': False, 'use_sliding_window': False})
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind != 'default':
    raise ValueError(f'this {folder.class_of(config)} is not one that jaxgen has: rope_type is {kind!r}')
  heads = config['num_attention_heads']
  net = Qwen3(
    width=config['hidden_size'],
    hidden=config.get('intermediate_size', 22016),
    depth=config['num_hidden_layers'],
    heads=heads,
    kv_heads=config.get('num_key_value_heads') or heads,
    head_size=config.get('head_dim') or config['hidden_size'] // heads,
    vocabulary=config.get('vocab_size', 151936),
    theta=float(rope.get('rope_theta', config.get('rope_theta', 1e6))),
    eps=config.get('rms_norm_eps', 1e-6),
    dtype=dtype,
  )
  return _layout(net, config)


def write(net: Qwen3, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as transformers does."""
  del params
  config = {
    'model_type': 'qwen3',
    'hidden_size': net.width,
    'intermediate_size': net.hidden,
    'num_hidden_layers': net.depth,
    'num_attention_heads': net.heads,
    'num_key_value_heads': net.kv_heads,
    'head_dim': net.head_size,
    'vocab_size': net.vocabulary,
    'rope_theta': net.theta,
    'rms_norm_eps': net.eps,
    'hidden_act': 'silu',
    'tie_word_embeddings': True,
  }
  more = {name: value for name, value in meta.config.items() if name not in ('layer_types', 'max_window_layers')}
  return _layout(net, more | config | {'architectures': ['Qwen3Model']})


def _layout(net: Qwen3, config: folder.Config) -> Layout:
  shapes = flat_shapes(net.init, jnp.zeros((1, 1), jnp.int32))
  leaves = encoder_leaves(shapes, ends=_ENDS, blocks='layers.{}', modules=_BLOCK)
  return Layout(net, leaves, config, folder.TRANSFORMERS, _own)


def _own(tensors: Tensors) -> Tensors:
  """Without the head, whose names, and those of the rest beside it, start with `model.`."""
  return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if not name.startswith('lm_head.')}
