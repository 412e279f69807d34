"""The training state: everything that is carried from one step to the next, as one tree of arrays."""

from typing import Any

import flax.struct
import jax.numpy as jnp


class TrainState(flax.struct.PyTreeNode):
  """The state of a run after `step` steps. Whatever is not here is a function of (config, seed, step).

  A tree of this class also holds shapes or shardings in place of the arrays, so its fields promise no array type.

  Attributes:
    step: number of train steps done, over all stages; int32 scalar.
    bad_steps: int32 scalar, how many train steps in a row, up to the last one, were skipped as not finite.
    params: trained networks by name: {'net'}, or {'generator', 'discriminator'}.
    opt_state: the optimizers' states, by the same names.
    ema: averages of params, by the averages' names.
    extra: state that the objective owns: batch statistics, an augmentation probability, ...
  """

  step: Any
  bad_steps: Any
  params: dict[str, Any]
  opt_state: dict[str, Any]
  ema: dict[str, Any]
  extra: dict[str, Any]


def init_state(objective, optimizers, averages, batch, key, *, frozen=None) -> TrainState:
  """The state before the first step; pure, so that it can be traced, sharded and shaped without running.

  Args:
    objective: an `Objective`.
    optimizers: `{params key: optax.GradientTransformation}`.
    averages: `{name: ema.Average}`.
    batch: a batch of data, for its shapes.
    key: PRNG key.
    frozen: the frozen networks, or their shapes.
  """
  made = objective.init(key, {} if frozen is None else frozen, batch)
  params = made['params']
  if set(optimizers) != set(params):
    raise ValueError(f'optimizers are for {sorted(optimizers)}, but the objective trains {sorted(params)}')
  for name, average in averages.items():
    if average.of not in params:
      raise ValueError(f'average {name!r} is of {average.of!r}, but the objective trains {sorted(params)}')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    bad_steps=jnp.zeros((), jnp.int32),
    params=params,
    opt_state={name: optimizers[name].init(tree) for name, tree in params.items()},
    ema={name: params[average.of] for name, average in averages.items()},
    extra=made.get('extra', {}),
  )


def sampling_params(state: TrainState) -> dict[str, Any]:
  """What to sample with: each network's average of the same name where there is one, and the objective's own state,
  if any, as 'extra' (running statistics, say)."""
  params = {name: state.ema.get(name, tree) for name, tree in state.params.items()}
  return params | ({'extra': state.extra} if state.extra else {})
