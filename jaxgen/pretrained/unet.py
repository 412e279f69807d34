"""U-Net weights of the original PyTorch code of IDDPM, ADM and Stable Diffusion 1 to Flax and back, bit for bit.

In which order a file keeps the rows that make queries, keys and values is not seen from its tensors; the caller must
know: `QkvOrder`. Stable Diffusion's are the tensors under `model.diffusion_model.`, named without that prefix.
"""

import enum
import math

import jax.numpy as jnp

from jaxgen.models.unet import Stage, UNet, decoder, encoder, middle
from jaxgen.pretrained.layout import Layout
from jaxgen.pretrained.state_dict import (
  Leaf,
  Leaves,
  Modules,
  Order,
  Shape,
  Tensors,
  conv,
  conv_1x1,
  flat_shapes,
  from_heads,
  leaf_of,
  linear,
  table,
  to_heads,
)

_merge = Order((2, 0, 1), lambda shape: (shape[2], shape[0] * shape[1], 1))  # from heads to features
_split = Order((), lambda shape: (math.prod(shape[1:]), shape[0], 1))  # to heads; the order is QkvOrder's


class QkvOrder(enum.Enum):
  """How a file orders the axes of an attention's first kernel, (features, 3, heads, size of a head) here."""

  LEGACY = (2, 1, 3, 0)  # queries, keys and values of the first head, then of the next: IDDPM; ADM but for 64x64
  NEW = (1, 2, 3, 0)  # queries of all heads, then keys, then values: ADM 64x64 (`use_new_attention_order`)


_ENDS: Modules = {
  'time_embed/in': ('time_embed.0', linear),
  'time_embed/out': ('time_embed.2', linear),
  'label_embed/table': ('label_emb', table),
  'vector_embed/in': ('label_emb.0.0', linear),
  'vector_embed/out': ('label_emb.0.2', linear),
  'conv_in': ('input_blocks.0.0', conv),
  'norm_out': ('out.0', table),
  'conv_out': ('out.2', conv),
}
_BLOCK: Modules = {
  'norm_in': ('in_layers.0', table),
  'conv_in': ('in_layers.2', conv),
  'modulation': ('emb_layers.1', to_heads),
  'norm_out': ('out_layers.0', table),
  'conv_out': ('out_layers.3', conv),
  'skip': ('skip_connection', conv_1x1),
}
_ATTENTION: Modules = {'norm': ('norm', table), 'qkv': ('qkv', _split), 'out': ('proj_out', _merge)}
_TRANSFORMER_BLOCK: Modules = {
  'self/query': ('attn1.to_q', to_heads),
  'self/key': ('attn1.to_k', to_heads),
  'self/value': ('attn1.to_v', to_heads),
  'self/out': ('attn1.to_out.0', from_heads),
  'cross/query': ('attn2.to_q', to_heads),
  'cross/key': ('attn2.to_k', to_heads),
  'cross/value': ('attn2.to_v', to_heads),
  'cross/out': ('attn2.to_out.0', from_heads),
  'norm_self': ('norm1', table),
  'norm_cross': ('norm2', table),
  'norm_mlp': ('norm3', table),
  'mlp_in': ('ff.net.0.proj', to_heads),
  'mlp_out': ('ff.net.2', linear),
}


def original(
  net: UNet,
  *,
  qkv_order: QkvOrder = QkvOrder.LEGACY,
  channels: int = 3,
  text_width: int = 0,
  concat: int = 0,
  vector: int = 0,
  linear_projection: bool = False,
  prefix: str = '',
) -> Layout:
  """The layout of the original code's file.

  Args:
    net: the network.
    qkv_order: order of queries, keys and values in the file; not used by a network with transformers.
    channels: channels of the images that it was trained on.
    text_width: features of a token of text, if the network reads text.
    concat, vector: as in `shapes`.
    linear_projection: a transformer's first and last layers are linear layers in the file, not convolutions: Stable
      Diffusion 2 and XL.
    prefix: start of its tensors' names in a checkpoint of a whole model.
  """

  def own(tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}

  modules = _modules(net, linear if linear_projection else conv_1x1)
  made = shapes(net, channels, text_width, concat=concat, vector=vector)
  leaves: Leaves = {path: _leaf(path, shape, modules, qkv_order) for path, shape in made.items()}
  return Layout(net, leaves, {}, own=own)


def transformer(depth: int, projection: Order) -> Modules:
  """The modules of a transformer, whose names are the same in the original code and in diffusers."""
  modules: Modules = {'norm': ('norm', table), 'in': ('proj_in', projection), 'out': ('proj_out', projection)}
  for i in range(depth):
    for module, (name, layout) in _TRANSFORMER_BLOCK.items():
      modules[f'block_{i}/{module}'] = (f'transformer_blocks.{i}.{name}', layout)
  return modules


def shapes(net: UNet, channels: int, text_width: int, *, concat: int = 0, vector: int = 0) -> dict[str, Shape]:
  """Shapes of the parameters by path.

  Args:
    net: the network.
    channels: channels of its images.
    text_width: features of a token.
    concat: channels of `cond['concat']`.
    vector: features that join the time: of the pooled text, and of the numbers of `cond['size']`.
  """
  side = 2 ** (len(net.multipliers) - 1)
  image, t = jnp.zeros((1, side, side, channels)), jnp.zeros(1)
  cond = {'label': jnp.zeros(1, jnp.int32), 'text': jnp.zeros((1, 1, text_width))}
  cond['level'] = t
  if concat:
    cond['concat'] = jnp.zeros((1, side, side, concat))
  if net.size_features:
    # One number and the rest as the pooled text have the same parameters as the published split.
    cond |= {'pooled': jnp.zeros((1, vector - net.size_features)), 'size': jnp.zeros((1, 1))}
  return flat_shapes(net.init, image, t, cond)


def _leaf(path: str, shape: Shape, modules: Modules, qkv_order: QkvOrder) -> Leaf:
  module, _, parameter = path.rpartition('/')
  name, layout = modules[module]
  if layout is not _split:
    return leaf_of(path, shape, modules)
  if parameter == 'kernel':
    return Leaf((f'{name}.weight',), shape, qkv_order.value, layout.tensor_shape(shape))
  # The bias has the kernel's axes but for its last in the tensor, the features.
  return Leaf((f'{name}.bias',), shape, tuple(axis - 1 for axis in qkv_order.value[:-1]), (math.prod(shape),))


def _modules(net: UNet, projection: Order) -> Modules:
  modules = dict(_ENDS)
  for i, stage in enumerate(encoder(net)):
    modules |= _stage(net, stage, f'encoder_{i}', f'input_blocks.{i + 1}', projection, resize='op')
  first = 0
  for i, stage in enumerate(middle(net)):
    modules |= _stage(net, stage, f'middle_{i}', 'middle_block', projection, first=first)
    first += stage.block + stage.attention
  for i, stage in enumerate(decoder(net)):
    modules |= _stage(net, stage, f'decoder_{i}', f'output_blocks.{i}', projection, resize='conv')
  return modules


def _stage(
  net: UNet, stage: Stage, path: str, name: str, projection: Order, *, resize: str = '', first: int = 0
) -> Modules:
  """The modules of a stage; those that PyTorch holds in one list are numbered from `first` on."""
  attention = transformer(stage.transformer, projection) if stage.transformer else _ATTENTION
  parts = {'block': _BLOCK, 'attention': attention, 'resize': _BLOCK}
  present = [part for part in parts if getattr(stage, part)]
  modules = {}
  for number, part in enumerate(present, first):
    if part == 'resize' and not net.style.resize_in_blocks:
      modules[f'{path}_{part}'] = (f'{name}.{number}.{resize}', conv)
      continue
    for module, (torch_module, layout) in parts[part].items():
      modules[f'{path}_{part}/{module}'] = (f'{name}.{number}.{torch_module}', layout)
  return modules
