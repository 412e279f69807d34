"""Helpers for optax: masks for weight decay, Muon's view of matrices, and GANs' variants of Adam.

Optimizers are optax's, called plainly in the configs:

  optax.adamw(rate, weight_decay=0.01, mask=kernels)
  optax.contrib.muon(rate, muon_weight_dimension_numbers=matrices)
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from jaxgen.sharding import path_name


def kernels(params: Any) -> Any:
  """A mask for weight decay: True for the weights of dense and convolution layers; not biases, norms or embeddings."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def matrices(params: Any) -> Any:
  """Muon's view of a transformer: the axes that each hidden kernel multiplies and makes; None goes to Adam.

  Kernels in `blocks`, or in a module whose name ends so, are stacked over depth, and each layer is a matrix of its own;
  those of `last_block` are not stacked. The first and last layers, modulations and embeddings go to Adam, as Muon's
  authors advise (Jordan et al. 2024).
  """

  def view(path, leaf):
    names = [entry.key for entry in path]
    stacked = int(any(name.endswith('blocks') for name in names))
    if names[-1] != 'kernel' or not (stacked or 'last_block' in names) or 'modulation' in names:
      return None
    from_heads = any(name.endswith('attention') for name in names) and names[-2].endswith('out')
    inputs = 2 if from_heads else 1  # heads and their size, or width
    if leaf.ndim <= stacked + inputs:
      return None
    return MuonDimensionNumbers(
      reduction_axis=tuple(range(stacked, stacked + inputs)), output_axis=tuple(range(stacked + inputs, leaf.ndim))
    )

  return jax.tree_util.tree_map_with_path(view, params)


def clipped(optimizer: optax.GradientTransformation, limit: float) -> optax.GradientTransformation:
  """Keeps every parameter in [-limit, limit] after each update (WGAN, Arjovsky et al. 2017)."""

  def update(updates, state, params=None):
    updates, state = optimizer.update(updates, state, params)
    return jax.tree.map(lambda p, u: jnp.clip(p + u, -limit, limit) - p, params, updates), state

  return optax.GradientTransformation(optimizer.init, update)


def rates_by_path(
  optimizer: optax.GradientTransformation, factors: Sequence[tuple[str, float]]
) -> optax.GradientTransformation:
  """Multiplies the updates of some parameters: learning rates by block, of which 0 trains nothing.

  Args:
    optimizer: the optimizer of all.
    factors: patterns, found anywhere in a path such as 'net/blocks/attention/qkv/kernel/a', and factors; the first
      pattern that is found counts, and what none is found in keeps its rate.
  """

  def factor(path: str) -> float:
    return next((value for pattern, value in factors if re.search(pattern, path)), 1.0)

  def scale(updates: Any, params: Any = None) -> Any:
    names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)}
    for pattern, _ in factors:
      if not any(re.search(pattern, name) for name in names):
        raise ValueError(f'the rate of {pattern!r} is of no parameter; their paths are like {min(names)}')
    return jax.tree_util.tree_map_with_path(lambda path, leaf: factor(path_name(path)) * leaf, updates)

  return optax.chain(optimizer, optax.stateless(scale)) if factors else optimizer


def lazy_adam(rate: float, *, b1: float, b2: float, every: int) -> optax.GradientTransformation:
  """Adam for a network with a lazy regulariser of that interval: `every` + 1 updates do the work of `every`.

  The rate and the logarithms of b1 and b2 are scaled by every / (every + 1), so that the moments forget, and the
  parameters move, as fast by the step as without (Karras et al. 2020, StyleGAN2, appendix B). Plain where `every` is 0
  or 1, for no regulariser or one within the loss.
  """
  ratio = every / (every + 1) if every > 1 else 1.0
  return optax.adam(rate * ratio, b1=b1**ratio, b2=b2**ratio)


def learning_rates(schedules: Mapping[str, optax.Schedule], opt_state: Mapping[str, Any]) -> dict[str, float]:
  """The rates of the last update, by metric: `learning_rate`, or `learning_rate/NAME` for several networks.

  Args:
    schedules: updates done to the rate, by the keys of `opt_state`.
    opt_state: the optimizers' states, which count their updates.
  """
  values = {}
  for name, schedule in schedules.items():
    counts = optax.tree_utils.tree_get_all_with_path(opt_state[name], 'count')
    if not counts:
      raise ValueError(f'the optimizer of {name!r} counts no updates, so its learning rate is not known')
    key = 'learning_rate' if len(schedules) == 1 else f'learning_rate/{name}'
    done = max(int(jnp.max(count)) for _, count in jax.device_get(counts))
    values[key] = float(np.asarray(schedule(jnp.int32(max(done - 1, 0)))))
  return values
