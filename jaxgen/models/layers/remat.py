"""Rematerialisation policies by name: which results of the forward pass a block keeps for its backward pass.

From the fastest to the smallest: none keeps everything; dots keeps the products with weights and what a fused attention
names (its result), and computes again what is cheap; offload keeps the products in the memory of the host; full keeps
the block's input.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

from jax import lax
from jax.ad_checkpoint import checkpoint_policies

# The policy of `jax.checkpoint`: (primitive, *arrays, **parameters) -> whether to keep the result
Saveable = Callable[..., Any]
Policy = Saveable | None  # None keeps every activation


ATTENTION = 'attention'  # name of what a fused attention's backward pass needs: its result and log-sums


def _of_products(policy: Saveable) -> Policy:
  """The policy for products that add something up; a bias for each token (`Linear`) is one that does not."""

  def kept(primitive: Any, *arrays: Any, **parameters: Any) -> Any:
    if primitive is lax.dot_general_p:
      (contracted, _), _ = parameters['dimension_numbers']
      if math.prod(arrays[0].shape[axis] for axis in contracted) == 1:
        return False
    return policy(primitive, *arrays, **parameters)

  return kept


POLICIES: dict[str, Policy] = {
  'none': None,
  'dots': checkpoint_policies.save_from_both_policies(
    _of_products(checkpoint_policies.dots_with_no_batch_dims_saveable),
    checkpoint_policies.save_only_these_names(ATTENTION),
  ),
  'offload': _of_products(checkpoint_policies.offload_dot_with_no_batch_dims('device', 'pinned_host')),
  'full': checkpoint_policies.nothing_saveable,
}


def policy(name: str) -> Policy:
  """The policy of that name."""
  if name not in POLICIES:
    raise ValueError(f'remat policy {name!r} is unknown; one of {", ".join(POLICIES)}')
  return POLICIES[name]


_of_each_block: contextvars.ContextVar[Policy] = contextvars.ContextVar('remat', default=None)


@contextlib.contextmanager
def each_block(policy: Policy) -> Iterator[None]:
  """Blocks that are traced within have this policy, where their network has none: that of an adapter's training."""
  token = _of_each_block.set(policy)
  try:
    yield
  finally:
    _of_each_block.reset(token)


def chosen(own: Policy) -> Policy:
  """The policy of a block: its network's own, else that of `each_block`."""
  return _of_each_block.get() if own is None else own
