"""A trained network: a Flax module that is applied with the tree `weights(params)`.

Networks know nothing of adapters: those make such a tree of trained and frozen parameters (objectives/adapted.py).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.processes.parameterisation import Apply
from jaxgen.typing import Array, Cond, Key, Params

NET = 'net'  # the network among the parameters, the averages, and, of a teacher or an adapter's base, the frozen trees


def weights(params: Mapping[str, Any]) -> Params:
  """The tree that the network is applied with, of `state.params`, of frozen networks or of what `Added.join` makes."""
  return params[NET]


def averaged(state: Any) -> Params:
  """The tree that the network is sampled with: its average, or its parameters where it has none.

  Raises:
    ValueError: the state holds no network, as that of an adapter alone.
  """
  if NET not in state.params:
    raise ValueError(f'the state holds {", ".join(map(repr, state.params))} and no network {NET!r} to start from')
  return state.ema.get(NET, state.params[NET])


class Network(NamedTuple):
  """A network.

  Attributes:
    net: `(x, network_time, cond, *, train) -> output`; its dropout uses the rng 'dropout'.
  """

  net: nn.Module

  def init(self, key: Key[Array, ''], shape: tuple[int, ...], cond: dict[str, Any]) -> Params:
    """Its initial parameters, for images of `shape` and conditions like `cond` (arrays or shapes) of any batch."""
    like = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), cond)
    variables: Any = self.net.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), like, train=False)
    return variables['params']

  def apply(self, params: dict[str, Any], *, hidden: dict[str, Any] | None = None, **kwargs: Any) -> Apply:
    """The network with its parameters.

    Args:
      params: trees by name.
      hidden: a dictionary that the network's collection 'hidden' is put into as it is traced, if it is given.
      kwargs: `train` and `rngs`.
    """

    def apply(x: Array, network_time: Array, cond: Cond) -> Array:
      variables = {'params': weights(params)}
      if hidden is None:
        output: Any = self.net.apply(variables, x, network_time, cond, **kwargs)
        return output
      output, left = self.net.apply(variables, x, network_time, cond, mutable=['hidden'], **kwargs)
      hidden.update(left['hidden'])
      return output

    return apply

  def tokens(self, params: dict[str, Any], shape: tuple[int, ...], cond: dict[str, Any]) -> dict[str, Any]:
    """The collection 'hidden', for its shapes."""
    like, left = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), cond), {}
    self.apply(params, train=False, hidden=left)(jnp.zeros((1, *shape)), jnp.zeros(1), like)
    if not left:
      raise ValueError('the network gives no hidden tokens; name the blocks, such as hidden=(2,)')
    return left
