"""Variational diffusion models: the noise schedule is learned with the model (VDM; Kingma et al. 2021).

With y(t) the negative log SNR, a monotone network from y_0 to y_1, alpha^2 = sigmoid(-y) and sigma^2 = sigmoid(y):

  (1)  L(t) = y'(t) |eps - eps_hat|^2 / 2                 in nats; its mean over t does not depend on y between its ends
  (2)  bound = E L(t) + KL(q(x_1 | x0) || N(0, 1)) - log p(x0 | x_0)
  (3)  the schedule minimises E L(t)^2, the variance of the estimate of E L(t)

so the network has one phase, whose loss is E L(t) in bits per dimension, and the schedule another, which may run at
every few steps. Samplers take the process that the schedule makes.

Differs from VDM: the ends of y are given, not learned.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.monotone import Monotone
from jaxgen.objectives.base import Aux, Denoising, Objective, Phase, sampled
from jaxgen.objectives.conditioning import Conditioner, unconditional
from jaxgen.objectives.diffusion.diffusion import by_time, init_of, trained
from jaxgen.objectives.diffusion.vlb import pixel_log_likelihood, prior_term
from jaxgen.objectives.network import NET, Network
from jaxgen.objectives.weight_map import check_no_map
from jaxgen.processes import parameterisation as parameterisations
from jaxgen.processes import times as time_samplers
from jaxgen.processes.parameterisation import Parameterise
from jaxgen.processes.parameterisation import denoiser as make_denoiser
from jaxgen.processes.process import Denoiser, Process, corrupt, expand, noise_like, sum_per_image
from jaxgen.samplers.sampler import Guide, Sampler
from jaxgen.typing import Array, Batch, Float, Key

TIME_SCALE = 1000.0  # the network sees this share of the way from y_0 to y_1


def process_of(negative_log_snr: Callable[[Array], Array], ends: tuple[float, float]) -> Process:
  """The variance-preserving process of y(t); the network sees y, brought to [0, TIME_SCALE]."""

  def network_time(t: Array) -> Array:
    return TIME_SCALE * (negative_log_snr(t) - ends[0]) / (ends[1] - ends[0])

  return Process(
    alpha=lambda t: jnp.sqrt(jax.nn.sigmoid(-negative_log_snr(t))),
    sigma=lambda t: jnp.sqrt(jax.nn.sigmoid(negative_log_snr(t))),
    network_time=network_time,
  )


def vdm(
  net: nn.Module,
  *,
  shape: tuple[int, ...],
  sampler: Sampler,
  ends: tuple[float, float] = (-13.3, 5.0),
  width: int = 128,
  every: int = 1,
  parameterisation: Parameterise = parameterisations.eps,
  times: time_samplers.TimeSampler = time_samplers.stratified,
  conditioner: Conditioner = unconditional,
  guide: Sequence[Guide] = (),
) -> Objective:
  """Trains `net` by Eq. 1 and the schedule by Eq. 3.

  Args:
    net, shape, sampler, conditioner, guide: as in `diffusion`.
    ends: y_0 and y_1.
    width: width of the schedule's network.
    every: steps between two updates of the schedule.
    parameterisation: the meaning of the network's output.
    times: uniform times, independent or stratified, as Eq. 3 asks.
  """
  schedule, network = Monotone(*ends, width=width), Network(net)
  conditioner.check()
  if not ends[0] < ends[1]:
    raise ValueError(f'ends are {ends}; the negative log SNR rises with time')

  def made(params: dict[str, Any]) -> tuple[Callable[[Array], Array], Process]:
    def y(t: Array) -> Array:
      value: Any = schedule.apply({'params': params['schedule']}, t)
      return value

    return y, process_of(y, ends)

  def denoiser(params: dict[str, Any], frozen: Any, process: Process, **kwargs: Any) -> Denoiser:
    return make_denoiser(network.apply(params, **kwargs), process, parameterisation)

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    check_no_map(batch, 'VDM')
    net_key, schedule_key = jax.random.split(key)
    made = init_of(network, shape, conditioner)(net_key, frozen, batch)
    of_schedule: Any = schedule.init(schedule_key, jnp.zeros(1))
    return made | {'params': made['params'] | {'schedule': of_schedule['params']}}

  def terms(params: dict[str, Any], frozen: Any, batch: Batch, key: Key[Array, '']) -> tuple[Array, Array]:
    """L of each image in bits per dimension, and its time."""
    time_key, noise_key, drop_key, dropout_key, encode_key = jax.random.split(key, 5)
    x0 = batch['image'].astype(jnp.float32)
    t = times(time_key, len(x0))
    y, process = made(params)
    eps = noise_like(x0, noise_key)
    cond, _ = conditioner.dropped(params, frozen, batch, drop_key=drop_key, encode_key=encode_key)
    denoise = denoiser(params, frozen, process, train=True, rngs={'dropout': dropout_key})
    return _bits(y, t, eps - denoise(corrupt(process, x0, eps, t), t, cond).eps), t

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    terms_key, ends_key = jax.random.split(key)
    each, t = terms(params, frozen, batch, terms_key)
    x0 = batch['image'].astype(jnp.float32)
    ended = jnp.mean(ends_of_bound(made(params)[1], x0, ends_key))
    return jnp.mean(each), Aux({'bound': jnp.mean(each) + ended, **by_time(each, t)})

  def spread(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    each, _ = terms(params, frozen, batch, key)
    return jnp.mean(each**2), Aux({'deviation': jnp.std(each)})  # Eq. 3

  denoising = Denoising(
    process=lambda params: made(params)[1],
    denoiser=lambda params, frozen: denoiser(params, frozen, made(params)[1], train=False),
    condition=conditioner.condition,
    sampler=sampler,
    shape=shape,
    limit=1.0,
    guide=tuple(guide),
  )
  phases = Phase('vdm', trained(conditioner), loss), Phase('schedule', 'schedule', spread, every)
  return Objective(init, phases, sampled(denoising), denoising, conditioner, {NET: net})


def _bits(y: Callable[[Array], Array], t: Float[Array, ' b'], error: Float[Array, 'b ...']) -> Float[Array, ' b']:
  """L(t) of an error of eps, in bits per dimension.  # Eq. 1"""
  rate = jax.jvp(y, (t,), (jnp.ones_like(t),))[1]
  return 0.5 * rate * sum_per_image(error**2) / (error[0].size * math.log(2))


def ends_of_bound(process: Process, x0: Float[Array, 'b ...'], key: Key[Array, '']) -> Float[Array, ' b']:
  """The second and third term of Eq. 2, in bits per dimension, of 8-bit images in [-1, 1]."""
  zero = jnp.zeros(len(x0))
  seen = corrupt(process, x0, noise_like(x0, key), zero)
  alpha, sigma = process.alpha(zero), process.sigma(zero)
  spread = jnp.broadcast_to(expand(2 * jnp.log(sigma / alpha), x0), x0.shape)
  nats = -pixel_log_likelihood(x0, seen / expand(alpha, x0), spread)
  return prior_term(process, x0) + sum_per_image(nats) / (x0[0].size * math.log(2))
