"""BERT, such as MiniLM, from and to transformers' folders."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.models.bert import Bert, minilm
from jaxgen.pretrained import folder, safetensors_file
from jaxgen.pretrained.layout import Layout, Meta
from jaxgen.pretrained.state_dict import (
  Module,
  Tensors,
  check,
  encoder_leaves,
  flat_shapes,
  from_heads,
  linear,
  table,
  to_heads,
)
from jaxgen.typing import Params

CLASSES = ('BertModel',)
_SELF = 'attention.self'
_BLOCK = {
  'attention/qkv': Module((f'{_SELF}.query', f'{_SELF}.key', f'{_SELF}.value'), to_heads),
  'attention/out': Module(('attention.output.dense',), from_heads),
  'norm1': Module(('attention.output.LayerNorm',), table),
  'mlp/in': Module(('intermediate.dense',), linear),
  'mlp/out': Module(('output.dense',), linear),
  'norm2': Module(('output.LayerNorm',), table),
}
_ENDS = {
  'token_embed/embedding': ('embeddings.word_embeddings.weight', table),
  'position_embed': ('embeddings.position_embeddings.weight', table),
  'segment_embed/embedding': ('embeddings.token_type_embeddings.weight', table),
  'norm_in/scale': ('embeddings.LayerNorm.weight', None),
  'norm_in/bias': ('embeddings.LayerNorm.bias', None),
  'pooler/kernel': ('pooler.dense.weight', linear),
  'pooler/bias': ('pooler.dense.bias', None),
}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of transformers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  folder.expect(config, {'hidden_act': 'gelu', 'is_decoder': False, 'position_embedding_type': 'absolute'})
  net = Bert(
    config.get('hidden_size', 768),
    config.get('intermediate_size', 3072),
    config.get('num_hidden_layers', 12),
    config.get('num_attention_heads', 12),
    vocabulary=config.get('vocab_size', 30522),
    context=config.get('max_position_embeddings', 512),
    segments=config.get('type_vocab_size', 2),
    eps=config.get('layer_norm_eps', 1e-12),
    dtype=dtype,
  )
  return layout(net, config)


def write(net: Bert, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as transformers does."""
  del params
  return layout(net, dict(meta.config) | configuration(net))


def layout(net: Bert, config: folder.Config) -> Layout:
  shapes = flat_shapes(net.init, jnp.zeros((1, 1), jnp.int32))
  leaves = encoder_leaves(shapes, ends=_ENDS, blocks='encoder.layer.{}', modules=_BLOCK)
  return Layout(net, leaves, config, folder.TRANSFORMERS, _own)


def read_minilm(path: Path) -> dict[str, np.ndarray]:
  """The tensors of MiniLM-L6-v2's file.

  Raises:
    ValueError: the file is damaged, or of another network.
  """
  made = layout(minilm(), {})
  own = made.own(safetensors_file.read(path))
  check(own, {name: leaf.tensor_shape for leaf in made.leaves.values() for name in leaf.names}, network='MiniLM')
  return {name: np.asarray(tensor) for name, tensor in own.items()}


def configuration(net: Bert) -> folder.Config:
  """The inverse of `read`'s network."""
  return {
    'architectures': ['BertModel'],
    'model_type': 'bert',
    'hidden_size': net.width,
    'intermediate_size': net.hidden,
    'num_hidden_layers': net.depth,
    'num_attention_heads': net.heads,
    'vocab_size': net.vocabulary,
    'max_position_embeddings': net.context,
    'type_vocab_size': net.segments,
    'layer_norm_eps': net.eps,
    'hidden_act': 'gelu',
    'pad_token_id': 0,
  }


def _own(tensors: Tensors) -> Tensors:
  """Without buffers and heads; the names of files with a head start with `bert.`."""

  def rename(name: str) -> str:  # some files have TensorFlow's names of scale and shift
    return name.removeprefix('bert.').replace('LayerNorm.gamma', 'LayerNorm.weight').replace('.beta', '.bias')

  kept = (name for name in tensors if not name.startswith('cls.') and not name.endswith('position_ids'))
  return {rename(name): tensors[name] for name in kept}
