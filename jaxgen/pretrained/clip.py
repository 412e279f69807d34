"""CLIP's towers from and to transformers' folders and OpenCLIP's files.

transformers    queries, keys and values are three tensors; projections are linear layers
OpenCLIP        they are one tensor; projections are matrices (features in, features out)
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxgen.models import clip
from jaxgen.models.clip import CLIP, CLIPText, CLIPVision
from jaxgen.pretrained import folder
from jaxgen.pretrained.layout import Layout, Meta
from jaxgen.pretrained.state_dict import (
  Leaf,
  Leaves,
  Module,
  Shape,
  Tensors,
  conv,
  encoder_leaves,
  flat_shapes,
  from_heads,
  linear,
  table,
  to_heads,
  to_qkv,
)
from jaxgen.typing import Params

Net = CLIPText | CLIPVision | CLIP
TEXT_CLASSES = ('CLIPTextModel', 'CLIPTextModelWithProjection')
VISION_CLASSES = ('CLIPVisionModel', 'CLIPVisionModelWithProjection')
CLASSES = (*TEXT_CLASSES, *VISION_CLASSES, 'CLIPModel')
_ACTIVATIONS = {'quick_gelu': clip.quick_gelu, 'gelu': clip.exact_gelu}
_LEGACY_END = 2  # eos_token_id of configurations that pooled at the highest id, which was the end of text
_BUFFERS = re.compile(r'(^|\.)(position_ids|attn_mask|logit_scale_init)$')

_BLOCK = {
  'norm1': Module(('layer_norm1',), table),
  'attention/qkv': Module(('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'), to_heads),
  'attention/out': Module(('self_attn.out_proj',), from_heads),
  'norm2': Module(('layer_norm2',), table),
  'mlp/in': Module(('mlp.fc1',), linear),
  'mlp/out': Module(('mlp.fc2',), linear),
}
_OPEN_BLOCK = {
  'norm1': Module(('ln_1',), table),
  'attention/qkv': Module(('attn.in_proj_{}',), to_qkv),
  'attention/out': Module(('attn.out_proj',), from_heads),
  'norm2': Module(('ln_2',), table),
  'mlp/in': Module(('mlp.c_fc',), linear),
  'mlp/out': Module(('mlp.c_proj',), linear),
}
# Path here -> (tensor there, layout); None is a vector's.
_TEXT = {
  'token_embed/embedding': ('text_model.embeddings.token_embedding.weight', table),
  'position_embed': ('text_model.embeddings.position_embedding.weight', table),
  'norm_out/scale': ('text_model.final_layer_norm.weight', None),
  'norm_out/bias': ('text_model.final_layer_norm.bias', None),
  'projection/kernel': ('text_projection.weight', linear),
}
_VISION = {
  'class_embed': ('vision_model.embeddings.class_embedding', None),
  'patch_embed/kernel': ('vision_model.embeddings.patch_embedding.weight', conv),
  'position_embed': ('vision_model.embeddings.position_embedding.weight', table),
  'norm_in/scale': ('vision_model.pre_layrnorm.weight', None),
  'norm_in/bias': ('vision_model.pre_layrnorm.bias', None),
  'norm_out/scale': ('vision_model.post_layernorm.weight', None),
  'norm_out/bias': ('vision_model.post_layernorm.bias', None),
  'projection/kernel': ('visual_projection.weight', linear),
}
_OPEN_TEXT = {
  'token_embed/embedding': ('token_embedding.weight', table),
  'position_embed': ('positional_embedding', table),
  'norm_out/scale': ('ln_final.weight', None),
  'norm_out/bias': ('ln_final.bias', None),
  'projection/kernel': ('text_projection', table),
}
_OPEN_VISION = {
  'class_embed': ('visual.class_embedding', None),
  'patch_embed/kernel': ('visual.conv1.weight', conv),
  'position_embed': ('visual.positional_embedding', table),
  'norm_in/scale': ('visual.ln_pre.weight', None),
  'norm_in/bias': ('visual.ln_pre.bias', None),
  'norm_out/scale': ('visual.ln_post.weight', None),
  'norm_out/bias': ('visual.ln_post.bias', None),
  'projection/kernel': ('visual.proj', table),
}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of transformers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  kind = folder.class_of(config)
  if kind in TEXT_CLASSES:
    net: Net = _text(config, projected=kind.endswith('WithProjection'), dtype=dtype)
  elif kind in VISION_CLASSES:
    net = _vision(config, projected=kind.endswith('WithProjection'), dtype=dtype)
  else:
    features = {'projection_dim': config.get('projection_dim', 512)}
    text, vision = ((config.get(f'{name}_config') or {}) | (config.get(f'{name}_config_dict') or {}) | features
                    for name in ('text', 'vision'))  # fmt: skip
    net = CLIP(_text(text, projected=True, dtype=dtype), _vision(vision, projected=True, dtype=dtype))
  return layout(net, config)


def layout(net: Net, config: folder.Config) -> Layout:
  """The layout of a network in a folder of transformers."""
  match net:
    case CLIPText():
      return Layout(net, text_leaves(net), config, folder.TRANSFORMERS, functools.partial(_own, 'text_model.'))
    case CLIPVision():
      return Layout(net, vision_leaves(net), config, folder.TRANSFORMERS, functools.partial(_own, 'vision_model.'))
  text, vision = text_leaves(net.text), vision_leaves(net.vision)
  leaves = {f'text/{path}': leaf for path, leaf in text.items()}
  leaves |= {f'vision/{path}': leaf for path, leaf in vision.items()}
  leaves['logit_scale'] = Leaf(('logit_scale',), (), (), ())
  return Layout(net, leaves, config, folder.TRANSFORMERS, functools.partial(_own, ''))


def write(net: Net, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as transformers does; `meta.config` may have more entries."""
  del params
  return layout(net, dict(meta.config) | configuration(net))


def configuration(net: Net) -> folder.Config:
  """The inverse of `read`'s network.

  Raises:
    ValueError: transformers has no such network.
  """
  match net:
    case CLIP():
      if net.logit_bias:
        raise ValueError("transformers' CLIPModel has no bias of its logits; leave `logit_bias` off")
      parts = {'text_config': configuration(net.text), 'vision_config': configuration(net.vision)}
      own = {'architectures': ['CLIPModel'], 'model_type': 'clip', 'projection_dim': net.text.projection}
      return own | parts
    case CLIPText():
      own = {
        'architectures': ['CLIPTextModelWithProjection' if net.projection else 'CLIPTextModel'],
        'model_type': 'clip_text_model',
        'vocab_size': net.vocabulary,
        'max_position_embeddings': net.context,
        'eos_token_id': net.end_of_text,
        'bos_token_id': net.end_of_text - 1,
        'pad_token_id': net.end_of_text,
      }
    case CLIPVision():
      own = {
        'architectures': ['CLIPVisionModelWithProjection' if net.projection else 'CLIPVisionModel'],
        'model_type': 'clip_vision_model',
        'image_size': net.size,
        'patch_size': net.patch,
        'num_channels': 3,
      }
  names = {activation: name for name, activation in _ACTIVATIONS.items()}
  return own | {
    'hidden_size': net.width,
    'intermediate_size': net.hidden or 4 * net.width,
    'num_hidden_layers': net.depth,
    'num_attention_heads': net.heads,
    'hidden_act': names[net.activation],
    'layer_norm_eps': 1e-5,
    'projection_dim': net.projection or net.width,
  }


def text_leaves(net: CLIPText, *, prefix: str = '') -> Leaves:
  """The leaves of a text tower with transformers' names, after `prefix`."""
  blocks = 'text_model.encoder.layers.{}'
  return encoder_leaves(_text_shapes(net), ends=_TEXT, blocks=blocks, modules=_BLOCK, prefix=prefix)


def open_text_leaves(net: CLIPText, *, prefix: str = '') -> Leaves:
  """The leaves of a text tower with OpenCLIP's names, after `prefix`."""
  blocks = 'transformer.resblocks.{}'
  return encoder_leaves(_text_shapes(net), ends=_OPEN_TEXT, blocks=blocks, modules=_OPEN_BLOCK, prefix=prefix)


def vision_leaves(net: CLIPVision) -> Leaves:
  blocks = 'vision_model.encoder.layers.{}'
  return encoder_leaves(_vision_shapes(net), ends=_VISION, blocks=blocks, modules=_BLOCK)


def open_layout(net: CLIP) -> Layout:
  """The layout of both towers in a file of OpenCLIP or of OpenAI."""
  shapes, blocks = _vision_shapes(net.vision), 'visual.transformer.resblocks.{}'
  vision = encoder_leaves(shapes, ends=_OPEN_VISION, blocks=blocks, modules=_OPEN_BLOCK)
  leaves = {f'text/{path}': leaf for path, leaf in open_text_leaves(net.text).items()}
  leaves |= {f'vision/{path}': leaf for path, leaf in vision.items()}
  for name in ('logit_scale', *(('logit_bias',) if net.logit_bias else ())):
    leaves[name] = Leaf((name,), (), (), ())
  return Layout(net, leaves, configuration(net.clone(logit_bias=False)), own=functools.partial(_own, ''))


def _text_shapes(net: CLIPText) -> dict[str, Shape]:
  return flat_shapes(net.init, jnp.zeros((1, 1), jnp.int32))


def _vision_shapes(net: CLIPVision) -> dict[str, Shape]:
  return flat_shapes(net.init, jnp.zeros((1, net.size, net.size, 3)))


def _own(prefix: str, tensors: Tensors) -> Tensors:
  """Without buffers; names of one tower start with `prefix`, which transformers leaves out of some files."""
  short = prefix and not any(name.startswith(prefix) for name in tensors)
  kept = {name: tensor for name, tensor in tensors.items() if not _BUFFERS.search(name)}
  return {prefix + name if short and 'projection' not in name else name: tensor for name, tensor in kept.items()}


def _text(config: Mapping[str, Any], *, projected: bool, dtype: Any) -> CLIPText:
  width, vocabulary = config.get('hidden_size', 512), config.get('vocab_size', clip.VOCABULARY)
  end = config.get('eos_token_id', clip.END_OF_TEXT)
  return CLIPText(
    width,
    config.get('num_hidden_layers', 12),
    config.get('num_attention_heads', 8),
    projection=config.get('projection_dim', 512) if projected else 0,
    hidden=config.get('intermediate_size', 2048),
    vocabulary=vocabulary,
    context=config.get('max_position_embeddings', clip.CONTEXT),
    end_of_text=min(vocabulary, clip.VOCABULARY) - 1 if end == _LEGACY_END else end,
    activation=_activation(config),
    dtype=dtype,
  )


def _vision(config: Mapping[str, Any], *, projected: bool, dtype: Any) -> CLIPVision:
  folder.expect(config, {'num_channels': 3})
  return CLIPVision(
    config.get('image_size', 224),
    config.get('patch_size', 32),
    config.get('hidden_size', 768),
    config.get('num_hidden_layers', 12),
    config.get('num_attention_heads', 12),
    projection=config.get('projection_dim', 512) if projected else 0,
    hidden=config.get('intermediate_size', 3072),
    activation=_activation(config),
    dtype=dtype,
  )


def _activation(config: Mapping[str, Any]) -> clip.Activation:
  name, eps = config.get('hidden_act', 'quick_gelu'), config.get('layer_norm_eps', 1e-5)
  if name not in _ACTIVATIONS or eps != 1e-5:
    raise ValueError(
      f'this CLIP is not one that jaxgen has: hidden_act is {name!r}, wanted one of {", ".join(_ACTIVATIONS)}; '
      f'layer_norm_eps is {eps}, wanted 1e-05'
    )
  return _ACTIVATIONS[name]
