"""DiT weights of the original PyTorch code (`DiT-XL-2-256x256.pt`) to a Flax tree and back, bit for bit.

A tensor is the Flax leaf seen with the axes `view`, in the order `order`: a linear layer is transposed, a
convolution over patches is a matrix over (row, column, channel), heads are an axis of their own. The blocks
of the file, one module each, are one stack here.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.models.dit import DiT
from jaxgen.models.layers.embedding import sincos_2d
from jaxgen.pretrained.state_dict import Shape, check
from jaxgen.typing import Params

_LATER = ('interval', 'qk_norm', 'rms_norm', 'swiglu', 'rope', 'registers', 'bottleneck')  # fields of DiT
POSITIONS = 'pos_embed'  # fixed, so it is in the file and not among the parameters


class _Layout(NamedTuple):
  view: Callable[[Shape, int], Shape]  # (shape of the leaf, side of a patch) -> its axes
  order: Shape  # of the view's axes in the tensor


_vector = _Layout(lambda shape, patch: (math.prod(shape),), (0,))
_table = _Layout(lambda shape, patch: shape, (0, 1))
_linear = _Layout(lambda shape, patch: (shape[0], math.prod(shape[1:])), (1, 0))
_merge = _Layout(lambda shape, patch: (math.prod(shape[:-1]), shape[-1]), (1, 0))  # from heads to a width
_patches = _Layout(lambda shape, patch: (patch, patch, shape[0] // patch**2, shape[1]), (3, 2, 0, 1))

# Flax module -> (PyTorch module, layout of its kernel); `{}` is the number of the block.
_MODULES = {
  'patch_embed': ('x_embedder.proj', _patches),
  'time_embed/in': ('t_embedder.mlp.0', _linear),
  'time_embed/out': ('t_embedder.mlp.2', _linear),
  'label_embed/table': ('y_embedder.embedding_table', _table),
  'blocks/modulation': ('blocks.{}.adaLN_modulation.1', _linear),
  'blocks/attention/qkv': ('blocks.{}.attn.qkv', _linear),
  'blocks/attention/out': ('blocks.{}.attn.proj', _merge),
  'blocks/mlp/in': ('blocks.{}.mlp.fc1', _linear),
  'blocks/mlp/out': ('blocks.{}.mlp.fc2', _linear),
  'final/modulation': ('final_layer.adaLN_modulation.1', _linear),
  'final/linear': ('final_layer.linear', _linear),
}


class _Leaf(NamedTuple):
  """Where one Flax parameter is found: `names`, one for each block, or a single one."""

  names: list[str]
  stacked: bool
  shape: Shape  # in Flax, of one block
  view: Shape
  order: Shape

  @property
  def tensor_shape(self) -> Shape:
    return tuple(self.view[axis] for axis in self.order)

  def to_flax(self, tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(np.argsort(self.order)).reshape(self.shape)

  def to_torch(self, leaf: np.ndarray) -> np.ndarray:
    return leaf.reshape(self.view).transpose(self.order)


def from_torch(net: DiT, tensors: Mapping[str, np.ndarray], *, image_shape: tuple[int, int, int]) -> Params:
  """Flax parameters of `net` from a state dict.

  Args:
    net: the network the weights are for.
    tensors: the state dict as NumPy arrays.
    image_shape: (height, width, channels) of the images the weights were trained on.

  Raises:
    ValueError: a list of all tensors that are missing, unexpected or of another shape; or other positions.
  """
  leaves = _leaves(net, image_shape)
  check(tensors, tensor_shapes(net, image_shape), network='DiT')
  if not np.allclose(tensors[POSITIONS], positions(net, image_shape), atol=1e-5):
    raise ValueError(f'{POSITIONS} is not the fixed sin-cos table, which is all that DiT here computes')
  flat = {}
  for path, leaf in leaves.items():
    parts = [leaf.to_flax(np.asarray(tensors[name])) for name in leaf.names]
    flat[path] = np.stack(parts) if leaf.stacked else parts[0]
  return traverse_util.unflatten_dict(flat, sep='/')


def to_torch(net: DiT, params: Params, *, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
  """The state dict that the original PyTorch code loads; the inverse of `from_torch`."""
  flat = traverse_util.flatten_dict(params, sep='/')
  tensors = {POSITIONS: positions(net, image_shape)}
  for path, leaf in _leaves(net, image_shape).items():
    parts = np.asarray(flat[path]) if leaf.stacked else np.asarray(flat[path])[None]
    for name, part in zip(leaf.names, parts, strict=True):
      tensors[name] = np.ascontiguousarray(leaf.to_torch(part))
  return tensors


def tensor_shapes(net: DiT, image_shape: tuple[int, int, int]) -> dict[str, Shape]:
  """Of the original code's state dict, by name."""
  shapes = {name: leaf.tensor_shape for leaf in _leaves(net, image_shape).values() for name in leaf.names}
  return shapes | {POSITIONS: positions(net, image_shape).shape}


def _leaves(net: DiT, image_shape: tuple[int, int, int]) -> dict[str, _Leaf]:
  later = [name for name in _LATER if getattr(net, name)]
  if later:
    raise ValueError(f'the published DiT has none of {later}; leave them off to exchange weights with it')
  image, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
  label = {'label': jnp.zeros(1, jnp.int32)}
  shapes = jax.eval_shape(lambda key: net.init(key, image, t, label)['params'], jax.random.key(0))
  flat: dict[str, Any] = traverse_util.flatten_dict(shapes, sep='/')
  return {path: _leaf(path, leaf.shape, net) for path, leaf in flat.items()}


def _leaf(path: str, shape: Shape, net: DiT) -> _Leaf:
  module, _, parameter = path.rpartition('/')
  name, layout = _MODULES[module]
  layout = _vector if parameter == 'bias' else layout
  name += '.bias' if parameter == 'bias' else '.weight'
  stacked = '{}' in name
  names = [name.format(i) for i in range(net.depth)] if stacked else [name]
  shape = shape[1:] if stacked else shape
  return _Leaf(names, stacked, shape, layout.view(shape, net.patch), layout.order)


def positions(net: DiT, image_shape: tuple[int, int, int]) -> np.ndarray:
  """The fixed table of positions, as the file has it."""
  height, width, _ = image_shape
  return sincos_2d(height // net.patch, width // net.patch, net.width)[None]
