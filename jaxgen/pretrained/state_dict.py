"""State dicts: tensors by name, as PyTorch's modules save them, to and from Flax trees, bit for bit.

A `Leaf` says where one Flax parameter is found and how it lies there: its axes in another order, in a shape of its own.
A linear layer is transposed, a 1x1 convolution is a linear layer with axes of size 1 at the end, heads are an axis
here; queries, keys and values, or the blocks of a scanned stack, are one array here and may be one tensor each there.
A mapping is `{path in the tree: Leaf}`, and goes both ways.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from jaxgen.typing import Params

_THREADS = 4
_ALIGNMENT = 64  # bytes
_LARGE = 32  # a parameter with more than this part of all numbers is read alone
Shape = tuple[int, ...]
Tensors = Mapping[str, Any]  # arrays, or what has a shape and becomes an array when it is asked to
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]  # as `map`


class Order(NamedTuple):
  """How a kernel is stored: its axes in the order of the tensor, and the tensor's shape from the kernel's."""

  order: Shape
  tensor_shape: Callable[[Shape], Shape]


# Layouts of a PyTorch module's weight, for a kernel of the shape in the comment.
table = Order((0, 1), lambda shape: shape)  # rows, features
linear = Order((1, 0), lambda shape: shape[::-1])  # in, out
to_heads = Order((1, 2, 0), lambda shape: (shape[1] * shape[2], shape[0]))  # in, heads, out of a head
from_heads = Order((2, 0, 1), lambda shape: (shape[2], shape[0] * shape[1]))  # heads, in of a head, out
to_qkv = Order((1, 2, 3, 0), lambda shape: (shape[1] * shape[2] * shape[3], shape[0]))  # in, 3, heads, out of a head
conv = Order((3, 2, 0, 1), lambda shape: (shape[3], shape[2], *shape[:2]))  # rows, columns, in, out
conv_1x1 = Order((1, 0), lambda shape: (*shape[::-1], 1, 1))  # in, out
Modules = dict[str, tuple[str, Order]]  # Flax module -> (PyTorch module, layout of its kernel)


class Leaf(NamedTuple):
  """Where one Flax parameter is stored.

  Attributes:
    names: names of its tensors: one, or one for each index of the axes `apart`, the last axis fastest.
    shape: shape in Flax.
    order: order of the axes of a part (the leaf without the axes `apart`) in its tensor.
    tensor_shape: shape of one tensor.
    apart: the axes along which the parts lie.
    view: shape that a part is given before its axes are ordered; its own shape by default.
    copies: each tensor is the whole leaf; on reading they must be equal.
    flip: axes of a part that are reversed in its tensor.
  """

  names: tuple[str, ...]
  shape: Shape
  order: Shape
  tensor_shape: Shape
  apart: Shape = ()
  view: Shape = ()
  copies: bool = False
  flip: Shape = ()

  @property
  def part_shape(self) -> Shape:
    return tuple(size for axis, size in enumerate(self.shape) if axis not in self.apart)

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  def to_flax(self, tensors: Tensors, *, each: Each = map) -> np.ndarray:
    """The parameter; `each` maps over its tensors, such as a pool's `map`."""
    if not self.apart:
      first = np.asarray(tensors[self.names[0]])
      for name in self.names[1:]:
        if not np.array_equal(first, np.asarray(tensors[name])):
          raise ValueError(f'{name} is not equal to {self.names[0]}; the network here has one for both')
      return self._part(first)
    part = self._part(tensors[self.names[0]])
    whole = _aligned(self.shape, part.dtype)
    parts = np.moveaxis(whole, self.apart, range(len(self.apart)))  # the same memory
    indices = list(np.ndindex(*parts.shape[: len(self.apart)]))
    parts[indices[0]] = part

    def fill(at: tuple[Shape, str]) -> None:
      index, name = at
      parts[index] = self._part(tensors[name])

    for _ in each(fill, zip(indices[1:], self.names[1:], strict=True)):
      pass
    return whole

  def to_torch(self, leaf: np.ndarray) -> dict[str, np.ndarray]:
    parts = np.moveaxis(leaf, self.apart, range(len(self.apart))).reshape(-1, *self.part_shape)
    view = self.view or self.part_shape
    turned = [
      (np.flip(part, self.flip) if self.flip else part).reshape(view).transpose(self.order).reshape(self.tensor_shape)
      for part in parts
    ]
    if self.copies:
      turned *= len(self.names)
    return {name: np.array(part, order='C') for name, part in zip(self.names, turned, strict=True)}

  def _part(self, tensor: Any) -> np.ndarray:
    view = self.view or self.part_shape
    turned = np.asarray(tensor).reshape([view[axis] for axis in self.order]).transpose(np.argsort(self.order))
    turned = turned.reshape(self.part_shape)
    return np.flip(turned, self.flip) if self.flip else turned  # a flip of a number is no array

  def of_one(self) -> 'Leaf':
    """The leaf of the only block of a stack of one, without the axis of the depth."""
    return self._replace(shape=self.shape[1:], apart=tuple(axis - 1 for axis in self.apart if axis))


def _aligned(shape: Shape, dtype: Any) -> np.ndarray:
  """An empty array at an address that XLA's CPU backend takes over without a copy."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  block = np.empty(size + _ALIGNMENT, np.uint8)
  start = -block.ctypes.data % _ALIGNMENT
  return block[start : start + size].view(dtype).reshape(shape)


Leaves = Mapping[str, Leaf]


def kernel(name: str, shape: Shape, layout: Order) -> Leaf:
  """A module's weight."""
  return Leaf((name,), shape, layout.order, layout.tensor_shape(shape))


def patches(name: str, shape: Shape, patch: int) -> Leaf:
  """A convolution over patches, which here is a matrix over (row, column, channel)."""
  view = (patch, patch, shape[0] // patch**2, shape[1])
  order = (3, 2, 0, 1)
  return Leaf((name,), shape, order, tuple(view[axis] for axis in order), view=view)


def vector(name: str, shape: Shape) -> Leaf:
  """A bias or a scale; its axes, if several, are one in the tensor."""
  return Leaf((name,), shape, tuple(range(len(shape))), (math.prod(shape),))


def leaf_of(path: str, shape: Shape, modules: Modules) -> Leaf:
  """The leaf at `path`, `module/parameter`, as PyTorch names a module's parameters."""
  module, _, parameter = path.rpartition('/')
  name, layout = modules[module]
  if parameter in ('kernel', 'embedding'):
    return kernel(f'{name}.weight', shape, layout)
  return vector(f'{name}.bias' if parameter == 'bias' else f'{name}.weight', shape)


class Module(NamedTuple):
  """A module of a stack's block, in PyTorch.

  Attributes:
    names: names of its modules there: one, or those whose outputs lie along one axis here, such as queries and keys.
      One with `{}` in it takes `weight` or `bias` there, others after a dot.
    layout: layout of the kernel of one of these modules.
  """

  names: tuple[str, ...]
  layout: Order


def stack_leaf(path: str, shape: Shape, *, blocks: str, modules: Mapping[str, Module], start: int = 0) -> Leaf:
  """The leaf of a scanned stack, whose first axis is the depth's.

  Args:
    path: path within the block.
    shape: shape with the depth.
    blocks: name of a block, `{}` its number.
    modules: modules of a block, by their path here.
    start: number of the stack's first block there.
  """
  module, _, parameter = path.rpartition('/')
  names, layout = modules[module]
  ending = 'bias' if parameter == 'bias' else 'weight'
  apart: Shape = (0,)
  if len(names) > 1:
    apart = (0, 1 if parameter == 'bias' else 2)
  part = tuple(size for axis, size in enumerate(shape) if axis not in apart)
  whole = [name.format(ending) if '{}' in name else f'{name}.{ending}' for name in names]
  there = tuple(f'{blocks.format(start + i)}.{name}' for i in range(shape[0]) for name in whole)
  if parameter == 'kernel':
    return Leaf(there, shape, layout.order, layout.tensor_shape(part), apart)
  return Leaf(there, shape, tuple(range(len(part))), (math.prod(part),), apart)


def encoder_leaves(
  shapes: Mapping[str, Shape],
  *,
  ends: Mapping[str, tuple[str, Order | None]],
  blocks: str,
  modules: Mapping[str, Module],
  prefix: str = '',
) -> dict[str, Leaf]:
  """The leaves of an encoder: one stack, called `blocks`, and the parameters before and after it.

  Args:
    shapes: shapes of the parameters by path.
    ends: tensor and layout of each parameter outside the stack; None for the layout of a vector.
    blocks: name of a block, `{}` its number.
    modules: modules of a block, by their path here.
    prefix: start of all names of tensors.
  """

  def leaf(path: str, shape: Shape) -> Leaf:
    if path.startswith('blocks/'):
      return stack_leaf(path.removeprefix('blocks/'), shape, blocks=prefix + blocks, modules=modules)
    name, layout = ends[path]
    return kernel(prefix + name, shape, layout) if layout else vector(prefix + name, shape)

  return {path: leaf(path, shape) for path, shape in shapes.items()}


def flat_shapes(init: Any, *args: Any) -> dict[str, Shape]:
  """`{path: shape}` of the parameters that `init(key, *args)`, a method of a network, would make."""
  specs, structure = jax.tree.flatten(jax.eval_shape(lambda: args))
  try:
    hash(init.__self__)
  except TypeError:  # a field is a list
    return _flat_shapes.__wrapped__(init.__self__, structure, tuple(specs))
  return dict(_flat_shapes(init.__self__, structure, tuple(specs)))


@functools.lru_cache(maxsize=64)
def _flat_shapes(net: nn.Module, structure: Any, specs: tuple[Any, ...]) -> dict[str, Shape]:
  """Traces a network once, and not again for an equal one: who loads a folder and saves it asks several times."""
  args = jax.tree.unflatten(structure, specs)
  shapes = jax.eval_shape(lambda key, *args: net.init(key, *args)['params'], jax.random.key(0), *args)
  flat: dict[str, Any] = traverse_util.flatten_dict(shapes, sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def to_flax(
  leaves: Leaves,
  tensors: Tensors,
  *,
  network: str,
  put: Callable[[str, np.ndarray], Any] = lambda path, array: array,
) -> Params:
  """The parameters of a network from a state dict.

  Args:
    leaves: leaves of the network.
    tensors: the state dict.
    network: name of the network, for messages.
    put: `(path, array) -> what to put in the tree`: places a parameter before others are read. Threads call it.

  Raises:
    ValueError: tensors are missing, unexpected or of another shape; the message counts them and has the first names.
  """
  check(tensors, {name: leaf.tensor_shape for leaf in leaves.values() for name in leaf.names}, network=network)

  def make(path: str, each: Each = map) -> Any:
    return put(path, leaves[path].to_flax(tensors, each=each))

  order = sorted(leaves, key=lambda path: leaves[path].size, reverse=True)
  few = sum(leaf.size for leaf in leaves.values()) / _LARGE
  large = [path for path in order if leaves[path].size > few]
  small = order[len(large) :]
  # Reading, hashing and transposing release Python's lock. A large parameter is in memory twice while it is put, so it
  # is read alone, by all threads, the largest first, while memory is emptiest; then each thread holds a small one.
  with ThreadPoolExecutor(_THREADS) as pool:
    made = {path: make(path, pool.map) for path in large}
    made |= dict(zip(small, pool.map(make, small), strict=True))
  return traverse_util.unflatten_dict({path: made[path] for path in leaves}, sep='/')


class Unread:
  """A parameter that is read from its file whenever numpy is asked for an array of it; float32."""

  dtype = np.dtype(np.float32)

  def __init__(self, leaf: Leaf, tensors: Tensors):
    self._leaf, self._tensors, self.shape = leaf, tensors, leaf.shape

  @property
  def size(self) -> int:
    return self._leaf.size

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(self._leaf.to_flax(self._tensors), dtype or self.dtype)


def lazily(leaves: Leaves, tensors: Tensors, *, network: str) -> Params:
  """The parameters of a network as `Unread` leaves; arguments and errors as of `to_flax`."""
  check(tensors, {name: leaf.tensor_shape for leaf in leaves.values() for name in leaf.names}, network=network)
  return traverse_util.unflatten_dict({path: Unread(leaf, tensors) for path, leaf in leaves.items()}, sep='/')


def to_torch(leaves: Leaves, params: Params) -> dict[str, np.ndarray]:
  """The state dict of a network's parameters; the inverse of `to_flax`."""
  flat = traverse_util.flatten_dict(params, sep='/')
  if flat.keys() != leaves.keys():
    raise ValueError(f'the parameters are not of this network: {sorted(flat.keys() ^ leaves.keys())} differ')
  tensors = {}
  for path, leaf in leaves.items():
    tensors |= leaf.to_torch(np.asarray(flat[path]))
  return tensors


def check(tensors: Tensors, wanted: Mapping[str, Shape], *, network: str) -> None:
  """Compares the tensors of a file with those of a network.

  Args:
    tensors: arrays, or anything with a shape, by name.
    wanted: the shape of every tensor the network has.
    network: name of the network, for the message.

  Raises:
    ValueError: tensors are missing, unexpected or of another shape; the message counts them and has the first names.
  """
  found = {name: tuple(tensors[name].shape) for name in tensors}
  problems = {
    'missing': [f'{name} {shape}' for name, shape in wanted.items() if name not in found],
    'unexpected': [f'{name} {shape}' for name, shape in found.items() if name not in wanted],
    'misshapen': [
      f'{name} is {found[name]}, wanted {shape}' for name, shape in wanted.items() if found.get(name, shape) != shape
    ],
  }
  if any(problems.values()):
    each = '; '.join(f'{len(names)} {kind}: {_first_five(names)}' for kind, names in problems.items() if names)
    raise ValueError(f'the state dict is not of this {network}, which has {len(wanted)} tensors: {each}')


def _first_five(names: list[str]) -> str:
  return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
