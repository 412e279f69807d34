"""U-Net weights of the original PyTorch code of IDDPM, ADM and Stable Diffusion 1 to Flax and back, bit for bit.

A tensor is the Flax leaf with its axes in another order, in a shape of its own: a linear layer is transposed, a 1x1
convolution is a linear layer with axes of size 1 at the end, and heads are an axis here. In which order a file keeps
the rows that make queries, keys and values is not seen from its tensors; the caller must know: `QkvOrder`. Stable
Diffusion's are the tensors under `model.diffusion_model.`, named without that prefix.
"""

import enum
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.models.unet import Stage, UNet, decoder, encoder, middle
from jaxgen.pretrained.state_dict import Shape, check
from jaxgen.typing import Params


class _Layout(NamedTuple):
  order: Shape  # of the leaf's axes in the tensor
  tensor_shape: Callable[[Shape], Shape]  # from the shape of the leaf


_table = _Layout((0, 1), lambda shape: shape)
_linear = _Layout((1, 0), lambda shape: shape[::-1])
_columns = _Layout((1, 2, 0), lambda shape: (shape[1] * shape[2], shape[0]))
_conv = _Layout((3, 2, 0, 1), lambda shape: (shape[3], shape[2], *shape[:2]))
_skip = _Layout((1, 0), lambda shape: (*shape[::-1], 1, 1))
_merge = _Layout((2, 0, 1), lambda shape: (shape[2], shape[0] * shape[1], 1))  # from heads to features
_heads = _Layout((2, 0, 1), lambda shape: (shape[2], shape[0] * shape[1]))
_split = _Layout((), lambda shape: (math.prod(shape[1:]), shape[0], 1))  # to heads; the order is QkvOrder's


class QkvOrder(enum.Enum):
  """How a file orders the axes of an attention's first kernel, (features, 3, heads, size of a head) here."""

  LEGACY = (2, 1, 3, 0)  # queries, keys and values of the first head, then of the next: IDDPM; ADM but for 64x64
  NEW = (1, 2, 3, 0)  # queries of all heads, then keys, then values: ADM 64x64 (`use_new_attention_order`)


# Flax module -> (PyTorch module, layout of its kernel or table); scales of norms and biases are vectors anyway.
_Modules = dict[str, tuple[str, _Layout]]
_ENDS: _Modules = {
  'time_embed/in': ('time_embed.0', _linear),
  'time_embed/out': ('time_embed.2', _linear),
  'label_embed/table': ('label_emb', _table),
  'conv_in': ('input_blocks.0.0', _conv),
  'norm_out': ('out.0', _table),
  'conv_out': ('out.2', _conv),
}
_BLOCK: _Modules = {
  'norm_in': ('in_layers.0', _table),
  'conv_in': ('in_layers.2', _conv),
  'modulation': ('emb_layers.1', _columns),
  'norm_out': ('out_layers.0', _table),
  'conv_out': ('out_layers.3', _conv),
  'skip': ('skip_connection', _skip),
}
_ATTENTION: _Modules = {'norm': ('norm', _table), 'qkv': ('qkv', _split), 'out': ('proj_out', _merge)}
_TRANSFORMER: _Modules = {'norm': ('norm', _table), 'in': ('proj_in', _skip), 'out': ('proj_out', _skip)}
_TRANSFORMER_BLOCK: _Modules = {
  'self/query': ('attn1.to_q', _columns),
  'self/key': ('attn1.to_k', _columns),
  'self/value': ('attn1.to_v', _columns),
  'self/out': ('attn1.to_out.0', _heads),
  'cross/query': ('attn2.to_q', _columns),
  'cross/key': ('attn2.to_k', _columns),
  'cross/value': ('attn2.to_v', _columns),
  'cross/out': ('attn2.to_out.0', _heads),
  'norm_self': ('norm1', _table),
  'norm_cross': ('norm2', _table),
  'norm_mlp': ('norm3', _table),
  'mlp_in': ('ff.net.0.proj', _columns),
  'mlp_out': ('ff.net.2', _linear),
}


class _Leaf(NamedTuple):
  """Where one Flax parameter is found, and how it lies there."""

  name: str
  shape: Shape  # in Flax
  order: Shape
  tensor_shape: Shape

  def to_flax(self, tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape([self.shape[axis] for axis in self.order]).transpose(np.argsort(self.order))

  def to_torch(self, leaf: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(leaf.transpose(self.order).reshape(self.tensor_shape))


def from_torch(
  net: UNet,
  tensors: Mapping[str, np.ndarray],
  *,
  qkv_order: QkvOrder = QkvOrder.LEGACY,
  channels: int = 3,
  text_width: int = 0,
) -> Params:
  """Flax parameters of `net` from a state dict.

  Args:
    net: the network the weights are for.
    tensors: the state dict as NumPy arrays.
    qkv_order: of the code that trained the weights; nothing to a network with transformers.
    channels: of the images the weights were trained on.
    text_width: features of a token of text, if the network reads text.

  Raises:
    ValueError: a list of all tensors that are missing, unexpected or of another shape.
  """
  leaves = _leaves(net, qkv_order, channels, text_width)
  check(tensors, {leaf.name: leaf.tensor_shape for leaf in leaves.values()}, network='U-Net')
  flat = {path: leaf.to_flax(np.asarray(tensors[leaf.name])) for path, leaf in leaves.items()}
  return traverse_util.unflatten_dict(flat, sep='/')


def to_torch(
  net: UNet, params: Params, *, qkv_order: QkvOrder = QkvOrder.LEGACY, channels: int = 3, text_width: int = 0
) -> dict[str, np.ndarray]:
  """The state dict that the original PyTorch code loads; the inverse of `from_torch`."""
  flat = traverse_util.flatten_dict(params, sep='/')
  leaves = _leaves(net, qkv_order, channels, text_width)
  return {leaf.name: leaf.to_torch(np.asarray(flat[path])) for path, leaf in leaves.items()}


def _leaves(net: UNet, qkv_order: QkvOrder, channels: int, text_width: int) -> dict[str, _Leaf]:
  side = 2 ** (len(net.multipliers) - 1)
  image, t = jnp.zeros((1, side, side, channels)), jnp.zeros(1)
  cond = {'label': jnp.zeros(1, jnp.int32), 'text': jnp.zeros((1, 1, text_width))}
  shapes = jax.eval_shape(lambda key: net.init(key, image, t, cond)['params'], jax.random.key(0))
  flat: dict[str, Any] = traverse_util.flatten_dict(shapes, sep='/')
  modules = _modules(net)
  return {path: _leaf(path, leaf.shape, modules, qkv_order) for path, leaf in flat.items()}


def _leaf(path: str, shape: Shape, modules: _Modules, qkv_order: QkvOrder) -> _Leaf:
  module, _, parameter = path.rpartition('/')
  name, layout = modules[module]
  order = layout.order if layout is not _split else qkv_order.value
  if parameter in ('kernel', 'embedding'):
    return _Leaf(f'{name}.weight', shape, order, layout.tensor_shape(shape))
  # A vector; that of queries, keys and values has the kernel's axes but for its last in the tensor, the features.
  order = tuple(axis - 1 for axis in order[:-1]) if layout is _split else tuple(range(len(shape)))
  return _Leaf(f'{name}.bias' if parameter == 'bias' else f'{name}.weight', shape, order, (math.prod(shape),))


def _modules(net: UNet) -> _Modules:
  modules = dict(_ENDS)
  for i, stage in enumerate(encoder(net)):
    modules |= _stage(net, stage, f'encoder_{i}', f'input_blocks.{i + 1}', resize='op')
  first = 0
  for i, stage in enumerate(middle(net)):
    modules |= _stage(net, stage, f'middle_{i}', 'middle_block', first=first)
    first += stage.block + stage.attention
  for i, stage in enumerate(decoder(net)):
    modules |= _stage(net, stage, f'decoder_{i}', f'output_blocks.{i}', resize='conv')
  return modules


def _stage(net: UNet, stage: Stage, path: str, name: str, *, resize: str = '', first: int = 0) -> _Modules:
  """The modules of a stage; those that PyTorch holds in one list are numbered from `first` on."""
  parts = {'block': _BLOCK, 'attention': _attention(net), 'resize': _BLOCK}
  present = [part for part in parts if getattr(stage, part)]
  modules = {}
  for number, part in enumerate(present, first):
    if part == 'resize' and not net.style.resize_in_blocks:
      modules[f'{path}_{part}'] = (f'{name}.{number}.{resize}', _conv)
      continue
    for module, (torch_module, layout) in parts[part].items():
      modules[f'{path}_{part}/{module}'] = (f'{name}.{number}.{torch_module}', layout)
  return modules


def _attention(net: UNet) -> _Modules:
  if not net.transformer:
    return _ATTENTION
  modules = dict(_TRANSFORMER)
  for i in range(net.transformer):
    for module, (name, layout) in _TRANSFORMER_BLOCK.items():
      modules[f'block_{i}/{module}'] = (f'transformer_blocks.{i}.{name}', layout)
  return modules
