"""Rematerialisation policies by name: what a block keeps of its forward pass for its backward pass."""

from collections.abc import Callable

import jax

# None keeps every activation; a policy is a callable of `jax.checkpoint`.
POLICIES: dict[str, Callable[..., bool] | None] = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keeps all but attention's products
  'full': jax.checkpoint_policies.nothing_saveable,
}


def policy(name: str) -> Callable[..., bool] | None:
  """The policy of that name."""
  if name not in POLICIES:
    raise ValueError(f'remat policy {name!r} is unknown; one of {", ".join(POLICIES)}')
  return POLICIES[name]
