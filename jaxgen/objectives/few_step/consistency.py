"""Consistency models: the network goes from any point of an ODE path to its end, so one step makes an image.

On the paths of EDM's process, x_t = x0 + sigma(t) eps, with the data's standard deviation d (Song et al. 2023):

  (1)  f(x, t) = c_skip x + c_out F(c_in x, t),   f(x, 0) = x
       c_skip = d^2 / ((sigma - sigma_min)^2 + d^2),   c_out = d (sigma - sigma_min) / sqrt(sigma^2 + d^2)
  (2)  L = E w(t) rho(f(x_t, t), sg f(x_s, s)),   s the time before t on a grid of N uniform times
  (3)  training: x_s = x0 + sigma(s) eps, of the same noise;  distillation: one Heun step of a teacher's ODE from x_t
  (4)  N = min(first 2^floor(k / K'), last) + 1 at step k,  K' = floor(steps / (log2 floor(last / first) + 1))
  (5)  w = 1 / (sigma(t) - sigma(s)),   rho: pseudo-Huber, or another of objectives/distances.py
  (6)  log sigma(s) ~ N(-1.1, 2^2), within the grid and rounded down to it

Eqs. 4 to 6 are iCT's (Song and Dhariwal 2024); its target network is the network itself, without an average. For
distillation Song et al. take an average for f(x_s, s): `target`. A uniform grid of t is the papers' grid of sigma.
Sampling, in one step or more: samplers/consistency.py.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import Aux, Denoising, Objective, Phase, sampled
from jaxgen.objectives.conditioning import Conditioner, unconditional
from jaxgen.objectives.diffusion.diffusion import init_of, trained
from jaxgen.objectives.distances import Distance, pseudo_huber
from jaxgen.objectives.network import NET, Network
from jaxgen.objectives.weight_map import map_of, masked
from jaxgen.processes import parameterisation
from jaxgen.processes.edm import edm
from jaxgen.processes.parameterisation import Apply
from jaxgen.processes.process import MARGIN, Denoiser, Process, corrupt, expand, noise_like
from jaxgen.samplers import consistency as sampling
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.sampler import Sampler
from jaxgen.typing import Array, Batch, Cond, Float, Int, Key

Teacher = Callable[[Any], Denoiser]  # frozen -> denoise
Target = Callable[[Any], dict[str, Any]]  # state -> the parameters of f(x_s, s), such as `average_of('target')`


def consistency(
  net: nn.Module,
  *,
  shape: tuple[int, ...],
  steps: int,
  process: Process | None = None,
  data_std: float = 0.5,
  first: int = 10,
  last: int = 1280,
  times: tuple[float, ...] = (1.0,),
  teacher: Teacher | None = None,
  target: Target | None = None,
  distance: Distance = pseudo_huber,
  conditioner: Conditioner = unconditional,
  limit: float | None = 1.0,
) -> Objective:
  """Trains f by Eq. 2.

  Args:
    net: `(c_in x, network_time, cond, *, train) -> F`.
    shape: shape of one image, `(h, w, c)`.
    steps: steps of the run, over which Eq. 4 goes from `first` to `last`.
    process: `edm(...)`, its default if None; alpha must be 1.
    data_std: d of Eq. 1.
    first, last: intervals of the grid at the start and at the end.
    times: times at which `sample` calls f, falling from 1; one for each step.
    teacher: `frozen -> denoise` of a diffusion model to distil; None trains from data alone.
    target: gives the parameters of f(x_s, s); None for the network's own.
    distance: rho of Eq. 2.
    conditioner, limit: as in `diffusion`.
  """
  process, network = process or edm(), Network(net)
  conditioner.check()
  if not 1 <= first <= last:
    raise ValueError(f'the grid goes from {first} to {last} intervals; wanted 1 <= first <= last')
  if not times or times[0] != 1 or (np.diff((*times, 0.0)) >= 0).any():
    raise ValueError(f'times are {times}; they must start at 1 and fall, without reaching 0')

  def function(params: dict[str, Any], frozen: Any, cond: Cond, **kwargs: Any) -> Callable[[Array, Array], Array]:
    return _function(network.apply(params, **kwargs), process, data_std, cond)

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    time_key, noise_key, drop_key, dropout_key, encode_key = jax.random.split(key, 5)
    x0 = batch['image'].astype(jnp.float32)
    intervals = num_intervals(state.step, steps, first=first, last=last)
    s, t = _neighbours(time_key, len(x0), process, intervals)
    eps = noise_like(x0, noise_key)
    cond, _ = conditioner.dropped(params, frozen, batch, drop_key=drop_key, encode_key=encode_key)
    x_t = corrupt(process, x0, eps, t)
    x_s = corrupt(process, x0, eps, s) if teacher is None else _heun(teacher(frozen), process, x_t, t, s, cond)
    rngs = {'dropout': dropout_key}
    f = function(params, frozen, cond, train=True, rngs=rngs)
    f_target = function(target(state), frozen, cond, train=True, rngs=rngs) if target else f
    now, earlier = f(x_t, t), jax.lax.stop_gradient(f_target(x_s, s))
    a, b, factor = masked(now, earlier, map_of(batch))
    each = factor * distance(frozen, a, b) / (process.sigma(t) - process.sigma(s))  # Eq. 5
    return jnp.mean(each), Aux({'intervals': jnp.float32(intervals), 'error': jnp.mean((now - earlier) ** 2)})

  def denoiser(params: dict[str, Any], frozen: Any) -> Denoiser:
    of_x0 = parameterisation.x0(process)
    return lambda x, t, cond: of_x0.predict(function(params, frozen, cond, train=False)(x, t), x, t)

  grid = np.asarray([*times, 0], np.float32)
  denoising = Denoising(
    process=lambda params: process,
    denoiser=denoiser,
    condition=conditioner.condition,
    sampler=Sampler(sampling.consistency, grid),
    shape=shape,
    limit=limit,
    guide=(clip(limit),),
    walk=Sampler(sampling.consistency, grids.fine(grid)),
    inverse=None,
  )
  phases = (Phase('consistency', trained(conditioner), loss),)
  init = init_of(network, shape, conditioner)
  return Objective(init, phases, sampled(denoising), denoising, conditioner, {NET: net})


def average_of(name: str) -> Target:
  """A target that is the average `name` of the network, which the run must keep:

  averages={'target': Average('net', ema.constant(0.95))},  target=average_of('target')
  """

  def target(state: Any) -> dict[str, Any]:
    if name not in state.ema:
      raise ValueError(f'the target is the average {name!r}; the run keeps {sorted(state.ema) or "none"}')
    return state.params | {NET: state.ema[name]}

  return target


def _function(apply: Apply, process: Process, data_std: float, cond: Cond) -> Callable[[Array, Array], Array]:
  """f of Eq. 1."""

  def f(x: Array, t: Array) -> Array:
    sigma = process.sigma(t)
    excess, norm = sigma - process.sigma(jnp.zeros_like(t)), jnp.sqrt(sigma**2 + data_std**2)
    seen = x / expand(norm, x)
    output = apply(seen, process.network_time(t), cond)
    skip, out = data_std**2 / (excess**2 + data_std**2), data_std * excess / norm
    return expand(skip, x) * x + expand(out, x) * output.astype(jnp.float32)

  return f


def num_intervals(step: Int[Array, ''], steps: int, *, first: int, last: int) -> Int[Array, '']:
  """N - 1 of Eq. 4."""
  length = max(1, math.floor(steps / (math.log2(last // first) + 1)))
  doublings = jnp.minimum(step // length, math.ceil(math.log2(last / first)))
  return jnp.minimum(first * 2**doublings, last)


def _neighbours(key: Key[Array, ''], num: int, process: Process, intervals: Array) -> tuple[Array, Array]:
  """Times s < t next to each other on the grid.  # Eq. 6"""
  ends = jnp.log(process.sigma(jnp.array([0.0, 1.0])))
  below, above = jax.scipy.special.ndtr((ends + 1.1) / 2.0)
  uniform = below + (above - below) * jax.random.uniform(key, (num,))
  wanted = -1.1 + 2.0 * jax.scipy.special.ndtri(uniform)
  grid_of = jnp.linspace(0.0, 1.0, 4097)  # log sigma is smooth in t: its inverse by interpolation
  t = jnp.interp(wanted, jnp.log(process.sigma(grid_of)), grid_of)
  index = jnp.clip(jnp.floor(t * intervals), 0, intervals - 1)
  return index / intervals, (index + 1) / intervals


def _heun(denoise: Denoiser, process: Process, x: Array, t: Array, s: Array, cond: Cond) -> Array:
  """One step of dx = eps dsigma from t to s; the denoiser is not called where there is no noise."""
  width = expand(process.sigma(s) - process.sigma(t), x)
  eps = denoise(x, t, cond).eps
  later = denoise(x + width * eps, jnp.maximum(s, MARGIN), cond).eps
  return jax.lax.stop_gradient(x + width * (eps + later) / 2)
