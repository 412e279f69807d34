"""Improved MeanFlow (iMF): the loss is on the velocity, and the scale of guidance is a condition of the network.

With u of mean_flow.py, Eqs. 1 and 2, conditioned on a guidance scale w, and c the condition, null where it is dropped,

  (1)  V   = u(x_t, t, r | c, w) + (t - r) sg(du/dt),   du/dt along the network's own velocity u(x_t, t, t | c, w)
  (2)  v_g = v + (1 - 1/w) (u(x_t, t, t | c, w) - u(x_t, t, t | null, w)),   v where c is dropped
  (3)  L   = mean |V - sg v_g|^2 / sg(|V - v_g|^2 + e)^p

so the target no longer holds the network's derivative, and one model is sampled at any scale. Geng et al. 2025,
"Improved Mean Flows: On the Challenges of Fastforward Generative Models". With `parameterisation.x0` on pixels it is
pixel MeanFlow (pMF, Lu et al. 2026), without its perceptual loss.

Differs from Geng et al.: w is log-uniform; guidance holds at all times, not in an interval that the network reads;
there is no second head for v.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.layers import attention
from jaxgen.objectives.base import Aux, Objective, Phase, sampled
from jaxgen.objectives.conditioning import Conditioner
from jaxgen.objectives.diffusion.diffusion import init_of, trained
from jaxgen.objectives.few_step.mean_flow import FLOW, Jump, denoising_by_jumps, jump_of_network, mean_where
from jaxgen.objectives.network import NET, Network
from jaxgen.objectives.weight_map import map_of, weighted
from jaxgen.processes.parameterisation import Parameterise, velocity
from jaxgen.processes.process import corrupt, expand, noise_like, sum_per_image
from jaxgen.processes.times import TimeSampler
from jaxgen.typing import Array, Batch, Cond, Float, Key

GUIDANCE = 'guidance'  # the entry of cond that has w


def improved_mean_flow(
  net: nn.Module,
  *,
  shape: tuple[int, ...],
  times: TimeSampler,
  jumps: Float[np.ndarray, ' n'],
  conditioner: Conditioner,
  scale: float,
  largest: float = 8.0,
  different: float = 0.5,
  power: float = 1.0,
  time_scale: float = 1.0,
  parameterisation: Parameterise = velocity,
  limit: float | None = 1.0,
) -> Objective:
  """Trains u by Eq. 3.

  Args:
    net: `(x_t, time, cond, *, train) -> u` that reads `cond['interval']` and `cond['guidance']`, such as
      `DiT(interval=True, guided=True)`.
    shape, times, jumps, power, time_scale, parameterisation, limit: as in `mean_flow`.
    conditioner: one with a null.
    scale: w of samples.
    largest: w is from 1 to this in training.
    different: share of the images with r < t.
  """
  conditioner.check()
  if not conditioner.nullable:
    raise ValueError('improved MeanFlow learns guidance, and no field of the condition has a null')
  if not 1 <= scale <= largest:
    raise ValueError(f'samples have guidance {scale}; training sees 1 to {largest}: raise largest')
  network = Network(net)
  any_jump = jump_of_network(network, time_scale, parameterisation)

  def jump_of(params: dict[str, Any], frozen: Any, cond: Cond, **kwargs: Any) -> Jump:
    """The jump; as samples are guided where `cond` does not say."""

    def jump(x: Array, t: Array, r: Array) -> Array:
      guided_cond = {GUIDANCE: jnp.full(x.shape[:1], scale), **cond}
      return any_jump(params, frozen, guided_cond, **kwargs)(x, t, r)

    return jump

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    keys = jax.random.split(key, 8)
    x0 = batch['image'].astype(jnp.float32)
    first, second = times(keys[0], len(x0)), times(keys[1], len(x0))
    t = jnp.maximum(first, second)
    jumping = jax.random.bernoulli(keys[2], different, t.shape)
    r = jnp.where(jumping, jnp.minimum(first, second), t)
    w = largest ** jax.random.uniform(keys[7], t.shape)
    eps = noise_like(x0, keys[3])
    x_t, v = corrupt(FLOW, x0, eps, t), eps - x0
    cond, dropped = conditioner.dropped(params, frozen, batch, drop_key=keys[4], encode_key=keys[6])
    cond, null = ({**c, GUIDANCE: w} for c in (cond, conditioner.without(params, frozen, cond)))
    now, unguided = (jump_of(params, frozen, c, train=False)(x_t, t, t) for c in (cond, null))
    v_g = jnp.where(expand(dropped, v), v, v + expand(1 - 1 / w, v) * (now - unguided))  # Eq. 2
    whole = compound(jump_of(params, frozen, cond, train=True, rngs={'dropout': keys[5]}), x_t, now, t, r)
    squares = (whole - jax.lax.stop_gradient(v_g)) ** 2
    weight = jax.lax.stop_gradient((sum_per_image(squares) + 1e-3) ** -power)
    error = sum_per_image(weighted(squares, map_of(batch)))
    squared = error / x0[0].size
    metrics = {
      'loss': jnp.mean(squared),
      'velocity_error': mean_where(~jumping, squared),
      'jump_error': mean_where(jumping, squared),
    }
    return jnp.mean(weight * error), Aux(metrics)  # Eq. 3

  def encode(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Array) -> Cond:
    more = {'interval': jnp.zeros(len(keys)), GUIDANCE: jnp.ones(len(keys))}
    return {**conditioner.encode(params, frozen, fields, keys), **more}

  denoising = denoising_by_jumps(jump_of, shape, conditioner, jumps, limit)
  phases = (Phase('improved_mean_flow', trained(conditioner), loss),)
  init = init_of(network, shape, conditioner._replace(encode=encode))
  return Objective(init, phases, sampled(denoising), denoising, conditioner, {NET: net})


def compound(jump: Jump, x_t: Array, along: Array, t: Array, r: Array) -> Array:
  """V of Eq. 1; `along` is the velocity that the derivative follows."""
  direction = jax.lax.stop_gradient(along), jnp.ones_like(t), jnp.zeros_like(r)
  with attention.with_forward_derivative():
    u, slope = jax.jvp(jump, (x_t, t, r), direction)
  return u + expand(t - r, x_t) * jax.lax.stop_gradient(slope)
