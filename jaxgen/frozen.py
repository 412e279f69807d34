"""Frozen networks: used and not trained, an argument of the step, and in no checkpoint.

A frozen network is lazy: its shapes are known first, so that a state can be planned and a step compiled, and its arrays
are read when they are placed, one leaf at a time, each device taking its own shard.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen import sharding
from jaxgen.adapters.lora import Kernel
from jaxgen.models.layers.int8 import Int8, quantized


@dataclasses.dataclass(frozen=True)
class Frozen:
  """One frozen network.

  Attributes:
    shapes: tree of `jax.ShapeDtypeStruct`, as the arrays are stored.
    load: reads the tree of arrays, on the host or lazy.
    hash: identity of the arrays; a run does not resume on others.
    dtype: dtype of the floating-point arrays on the devices; None keeps theirs.
  """

  shapes: Any
  load: Callable[[], Any]
  hash: Callable[[], str]
  dtype: Any = None

  @property
  def placed_shapes(self) -> Any:
    """Shapes and dtypes on the devices."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, self._dtype_of(leaf.dtype)), self.shapes)

  def _dtype_of(self, dtype: Any) -> Any:
    return self.dtype if self.dtype is not None and jnp.issubdtype(dtype, jnp.floating) else dtype


def frozen(tree: Any, *, dtype: Any = None) -> Frozen:
  """A Frozen of a tree that is in memory, or that already is one."""
  if isinstance(tree, Frozen):
    return tree
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)
  return Frozen(shapes, lambda: tree, functools.cache(lambda: tree_hash(tree)), dtype)


def shapes(networks: Mapping[str, Any]) -> dict[str, Any]:
  """Shapes of all frozen networks as the objective sees them."""
  return {name: frozen(network).placed_shapes for name, network in networks.items()}


def place(networks: Mapping[str, Any], places: Mapping[str, Any]) -> dict[str, Any]:
  """The frozen networks on their devices; one leaf is on the host at a time, the largest first, when least is placed.

  Args:
    networks: the frozen networks.
    places: a sharding for each leaf, as of `shapes(networks)`.
  """
  made = {name: frozen(network) for name, network in networks.items()}
  return {name: _placed_tree(network.placed_shapes, places[name], network.load()) for name, network in made.items()}


def _placed_tree(like: Any, places: Any, tree: Any) -> Any:
  shapes, structure = jax.tree.flatten(like)
  leaves = list(zip(shapes, structure.flatten_up_to(places), structure.flatten_up_to(tree), strict=True))
  placed = {i: _placed(*leaves[i]) for i in sorted(range(len(leaves)), key=lambda i: -shapes[i].size)}
  return jax.tree.unflatten(structure, [placed[i] for i in range(len(leaves))])


def _placed(like: jax.ShapeDtypeStruct, place: jax.sharding.Sharding, leaf: Any) -> jax.Array:
  array = np.asarray(leaf)
  made = jax.make_array_from_callback(like.shape, place, lambda index: array[index].astype(like.dtype, copy=False))
  return jax.block_until_ready(made)  # the host's copy lives until then


def in_int8(networks: Mapping[str, Frozen], known: Mapping[str, Kernel]) -> dict[str, Frozen]:
  """Frozen networks with their kernels in eight bits (models/layers/int8.py), which are made when they are read.

  Args:
    networks: the networks by name.
    known: their kernels, from `adapters.lora.kernels`; other arrays stay as they are.
  """
  return {name: _in_int8(network, name, known) for name, network in networks.items()}


def _in_int8(network: Frozen, name: str, known: Mapping[str, Kernel]) -> Frozen:
  def each(tree: Any, change: Callable[[Any, Kernel], Any]) -> Any:
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep='/')
    made = {}
    for path, leaf in flat.items():
      kernel = known.get(f'{name}/{path.removesuffix("/kernel")}') if path.endswith('/kernel') else None
      made[path] = leaf if kernel is None else change(leaf, kernel)
    return traverse_util.unflatten_dict(made, sep='/')

  def shapes(leaf: Any, kernel: Kernel) -> Int8:
    ones = (*kernel.layers, *(1,) * kernel.inputs, *kernel.outs)
    return Int8(jax.ShapeDtypeStruct(leaf.shape, jnp.int8), jax.ShapeDtypeStruct(ones, jnp.float32))

  def load() -> Any:
    return each(network.load(), lambda leaf, kernel: quantized(leaf, layers=kernel.stacked, inputs=kernel.inputs))

  return Frozen(each(network.shapes, shapes), load, network.hash, network.dtype)


def tree_hash(tree: Any) -> str:
  """SHA-256 of a tree's paths, shapes, dtypes and bytes, whatever the order of its keys."""
  leaves = {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  digest = hashlib.sha256()
  for path in sorted(leaves):
    array = np.asarray(leaves[path])
    digest.update(f'{path} {array.shape} {array.dtype}'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return digest.hexdigest()
