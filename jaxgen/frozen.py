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

from jaxgen import sharding


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


def tree_hash(tree: Any) -> str:
  """SHA-256 of a tree's paths, shapes, dtypes and bytes, whatever the order of its keys."""
  leaves = {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  digest = hashlib.sha256()
  for path in sorted(leaves):
    array = np.asarray(leaves[path])
    digest.update(f'{path} {array.shape} {array.dtype}'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return digest.hexdigest()
