"""Rematerialisation policies by name: what a block keeps of its forward pass for its backward pass.

From the fastest to the smallest: none keeps everything; dots keeps the products with weights, and computes again what
is cheap, and attention; offload keeps the same in the memory of the host; full keeps the block's input.
"""

from collections.abc import Callable

import jax

# None keeps every activation; a policy is a callable of `jax.checkpoint`.
POLICIES: dict[str, Callable[..., bool] | None] = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'offload': jax.checkpoint_policies.offload_dot_with_no_batch_dims('device', 'pinned_host'),
  'full': jax.checkpoint_policies.nothing_saveable,
}


def policy(name: str) -> Callable[..., bool] | None:
  """The policy of that name."""
  if name not in POLICIES:
    raise ValueError(f'remat policy {name!r} is unknown; one of {", ".join(POLICIES)}')
  return POLICIES[name]
