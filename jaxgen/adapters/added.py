"""The form of an adapter: parameters that are trained beside frozen networks.

`objectives/adapted.py` makes of an objective one that trains the adapter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxgen.typing import Array, Key

Trees = dict[str, Any]  # networks by name, as in `state.params`
Make = Callable[[Key[Array, '']], Trees]


class Added(NamedTuple):
  """An adapter.

  Attributes:
    init: `(key, make) -> {params key: tree}`, the trained ones; `make(key)` gives the first parameters of the objective
      that is adapted, for their shapes.
    join: `(params, frozen) -> (params, frozen)` of the objective that is adapted.
    trains: the keys that `init` gives.
  """

  init: Callable[[Key[Array, ''], Make], Trees]
  join: Callable[[Trees, Any], tuple[Trees, Any]]
  trains: tuple[str, ...]
