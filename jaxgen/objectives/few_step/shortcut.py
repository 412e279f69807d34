"""Shortcut models (Frans et al. 2025): one network makes an image in 1, 2, 4, ... jumps of a rectified flow.

With u(x_t, t, r) the velocity of the jump from t to r (mean_flow.py, Eqs. 1 and 2), sg the stopped gradient and h the
length of a jump, one jump is made equal to two of half its length:

  (1)  u(x_t, t, t - 2h) = sg(u(x_t, t, t - h) + u(x_{t-h}, t - h, t - 2h)) / 2

At interval 0 the network learns the velocity itself.

Differs from the paper in the direction of time, which has t = 1 for data.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import Aux, Objective, Phase, sampled
from jaxgen.objectives.conditioning import Conditioner, unconditional
from jaxgen.objectives.diffusion.diffusion import trained
from jaxgen.objectives.few_step.mean_flow import (
  FLOW,
  Jump,
  denoising_by_jumps,
  init_jumps,
  jump_of_network,
  mean_where,
)
from jaxgen.objectives.network import NET, Network, weights
from jaxgen.objectives.weight_map import map_of, weighted
from jaxgen.processes.parameterisation import Parameterise, velocity
from jaxgen.processes.process import corrupt, expand, noise_like, sum_per_image
from jaxgen.typing import Array, Batch, Cond, Float, Key


def shortcut(
  net: nn.Module,
  *,
  shape: tuple[int, ...],
  jumps: Float[np.ndarray, ' n'],
  finest: int = 128,
  bootstrap_every: int = 4,
  conditioner: Conditioner = unconditional,
  time_scale: float = 1000.0,
  parameterisation: Parameterise = velocity,
  limit: float | None = 1.0,
) -> Objective:
  """Trains u by Eq. 1, and at interval 0 as the velocity.

  Args:
    net, shape, jumps, conditioner, time_scale, parameterisation, limit: as in `mean_flow`; jumps of 1, 1/2,
      1/4, ... are the trained ones, and there is no derivative by t.
    finest: a power of two; jumps of 1/finest are taken at interval 0.
    bootstrap_every: one image in this many trains the self-consistency target (Eq. 1), which the average of the
      network's name predicts where there is one.
  """
  levels = finest.bit_length() - 1
  if finest < 2 or 2**levels != finest:
    raise ValueError(f'finest is {finest}; it must be a power of two, 2 or more')

  conditioner.check()
  network = Network(net)
  any_jump = jump_of_network(network, time_scale, parameterisation)

  def jump_of(params, frozen, cond: Cond, **kwargs: Any) -> Jump:
    jump = any_jump(params, frozen, cond, **kwargs)
    return lambda x, t, r: jump(x, t, jnp.where(t - r < 1.5 / finest, t, r))

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    x0 = batch['image'].astype(jnp.float32)
    if len(x0) % bootstrap_every:
      raise ValueError(
        f'a batch of {len(x0)} does not divide into groups of {bootstrap_every}; use a multiple of bootstrap_every'
      )
    keys = jax.random.split(key, 5)
    taught = jnp.arange(len(x0)) % bootstrap_every == 0
    level_key, place_key = jax.random.split(keys[0])
    length = 2.0 ** -jax.random.randint(level_key, (len(x0),), 0, levels)  # 1 ... 2/finest
    place = jax.random.uniform(place_key, (len(x0),))
    t = jnp.where(taught, length * jnp.floor(1 + place / length), place)
    eps = noise_like(x0, keys[1])
    x_t = corrupt(FLOW, x0, eps, t)
    cond, _ = conditioner.dropped(params, frozen, batch, drop_key=keys[2], encode_key=keys[4])
    teacher = {**params, NET: state.ema.get(NET, weights(params))}
    few = jax.tree.map(lambda a: a[::bootstrap_every], (x_t, t, length, cond))
    two = shortcut_target(jump_of(teacher, frozen, few[3], train=False), *few[:3])
    spread = jnp.repeat(two, bootstrap_every, axis=0)
    target = jax.lax.stop_gradient(jnp.where(expand(taught, x0), spread, eps - x0))
    r = jnp.where(taught, t - length, t)
    u = jump_of(params, frozen, cond, train=True, rngs={'dropout': keys[3]})(x_t, t, r)
    squared = sum_per_image(weighted((u - target) ** 2, map_of(batch))) / x0[0].size
    metrics = {'velocity_error': mean_where(~taught, squared), 'jump_error': mean_where(taught, squared)}
    return jnp.mean(squared), Aux(metrics)

  denoising = denoising_by_jumps(jump_of, shape, conditioner, jumps, limit)
  phases = (Phase('shortcut', trained(conditioner), loss),)
  init = init_jumps(network, shape, conditioner)
  return Objective(init, phases, sampled(denoising), denoising, conditioner, {NET: net})


def shortcut_target(jump: Jump, x_t: Array, t: Array, length: Array) -> Array:
  """The right side of Eq. 1, without its sg: the mean velocity of two jumps of half the length."""
  half = length / 2
  first = jump(x_t, t, t - half)
  second = jump(x_t - expand(half, x_t) * first, t - half, t - length)
  return (first + second) / 2
