"""Adapters that are parameters beside a network's own: a control branch, keys and values of an image, some layers.

  tree = base, with the leaves that are trained in their places                              (1)

The objective is built with the whole network; the leaves whose path a pattern is found in are trained, and all others
are frozen. Whether such leaves start at zero, so that the first step is the base's, is a matter of the network.
"""

import re
from typing import Any

from flax import traverse_util

from jaxgen.adapters.added import Added, Make, Trees
from jaxgen.typing import Array, Key


def beside(pattern: str, *, name: str, base: tuple[str, ...] = ('net',)) -> Added:
  """Trains the leaves that match a pattern as params[name], for `objectives/adapted.py`.

  Args:
    pattern: found in a path such as 'net/encoder_0_attention/block_0/image_key/kernel'.
    name: the key of `state.params`.
    base: the networks of the objective; `Experiment.frozen` has those of their leaves that are not trained.
  """

  def init(key: Key[Array, ''], make: Make) -> Trees:
    flat = traverse_util.flatten_dict(make(key), sep='/')
    found = {path: leaf for path, leaf in flat.items() if re.search(pattern, path)}
    if not found:
      raise ValueError(f'the pattern {pattern!r} is found in no parameter; the paths are like {min(flat)}')
    return {name: traverse_util.unflatten_dict(found, sep='/')}

  def join(params: Trees, frozen: Any) -> tuple[Trees, Any]:
    rest = {other: tree for other, tree in params.items() if other != name}
    mine = params[name]
    trees = {key: over(frozen.get(key, {}), mine.get(key, {})) for key in dict.fromkeys((*base, *mine))}
    return {**rest, **trees}, frozen

  return Added(init, join, (name,))


def over(tree: Any, top: Any) -> Any:
  """`tree` with the leaves of `top` in their places, whether it had them or not."""
  if not isinstance(top, dict):
    return top
  return {key: over(tree.get(key, {}), top[key]) if key in top else tree[key] for key in (*tree, *(top.keys() - tree))}
