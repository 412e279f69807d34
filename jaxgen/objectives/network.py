"""A trained network: a Flax module, and where the tree that it is applied with comes from.

  weights(params, frozen) -> tree

By default the tree is params['net']. With adapters, params hold the additions and frozen the base; `weights` joins
them. This is the only place that asks for the tree.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.processes.parameterisation import Apply
from jaxgen.typing import Array, Cond, Key, Params

Weights = Callable[[dict[str, Any], Any], Params]  # (params, frozen) -> the tree that a network is applied with


def own(params: dict[str, Any], frozen: Any) -> Params:
  """The network's own parameters, params['net']."""
  return params['net']


class Network(NamedTuple):
  """A network and its weights.

  Attributes:
    net: `(x, network_time, cond, *, train) -> output`; its dropout uses the rng 'dropout'.
    weights: see the module's docstring.
  """

  net: nn.Module
  weights: Weights = own

  def init(self, key: Key[Array, ''], shape: tuple[int, ...], cond: dict[str, Any]) -> Params:
    """Its initial parameters, for images of `shape` and conditions like `cond` (arrays or shapes) of any batch."""
    like = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), cond)
    variables: Any = self.net.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), like, train=False)
    return variables['params']

  def apply(self, params: dict[str, Any], frozen: Any, **kwargs: Any) -> Apply:
    """The network with its parameters; `kwargs` are `train` and `rngs`."""
    tree = self.weights(params, frozen)

    def apply(x: Array, network_time: Array, cond: Cond) -> Array:
      output: Any = self.net.apply({'params': tree}, x, network_time, cond, **kwargs)
      return output

    return apply
