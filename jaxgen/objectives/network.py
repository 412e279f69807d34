"""A trained network: a Flax module that is applied with the tree params['net'].

Networks know nothing of adapters: those join trained and frozen parameters into such a tree (objectives/adapted.py).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.processes.parameterisation import Apply
from jaxgen.typing import Array, Cond, Key, Params


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
      params: trees by name, of which 'net' is its own.
      hidden: a dictionary that the network's collection 'hidden' is put into as it is traced, if it is given.
      kwargs: `train` and `rngs`.
    """

    def apply(x: Array, network_time: Array, cond: Cond) -> Array:
      variables = {'params': params['net']}
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
      raise ValueError('the network lets no tokens out; say after which block, hidden=(2,)')
    return left
