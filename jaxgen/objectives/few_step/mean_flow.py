"""MeanFlow (Geng et al. 2025): the network learns the velocity of a whole jump, and one to four jumps make an image.

Rectified flow has x_t = (1 - t) x0 + t eps and v = eps - x0. Between two times r <= t on a path of its ODE,

  (1)  u(x_t, t, r) = 1/(t - r) integral from r to t of v(x_s, s) ds,   u(x_t, t, t) = v(x_t, t)
  (2)  x_r = x_t - (t - r) u(x_t, t, r)

Eq. 1 is differentiated along the path, with sg the stopped gradient:

  (3)  u = sg(v - (t - r) du/dt),   du/dt = v du/dx + du/dt at fixed x     (one forward-mode pass)

A network is told s t as its time, and s (t - r) as cond['interval'], s the `time_scale`. As a denoiser it is
u(x_t, t, t), and u(x_t, t, r) to whom tells it r as cond[END]; x0 and eps are then the ends of the straight line
through x_t along u. Its output is u, or by another parameterisation what says where that line ends: of x0,
u = (x_t - x0) / t, and one step from noise is the output itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.layers import attention
from jaxgen.objectives.base import Aux, Denoising, Objective, Phase, sampled
from jaxgen.objectives.diffusion.diffusion import drop, init_network, named
from jaxgen.processes.parameterisation import Parameterisation, velocity
from jaxgen.processes.process import Prediction, Process, corrupt, expand, noise_like, sum_per_image
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.times import TimeSampler
from jaxgen.samplers import grids
from jaxgen.samplers.guidance import nothing
from jaxgen.typing import Array, Batch, Cond, Float, Key

END = 'end'
Jump = Callable[[Array, Array, Array], Array]  # (x_t, t, r) -> u
JumpOf = Callable[..., Jump]  # (params, cond, *, train, rngs) -> jump
FLOW = rectified_flow()
VELOCITY = velocity(FLOW)


def mean_flow(
  net: nn.Module,
  *,
  shape: tuple[int, ...],
  times: TimeSampler,
  jumps: Float[np.ndarray, ' n'],
  different: float = 0.25,
  null: dict[str, Any] | None = None,
  drop_rate: float = 0.0,
  scale: float = 1.0,
  power: float = 1.0,
  time_scale: float = 1.0,
  parameterisation: Parameterisation = VELOCITY,
  limit: float | None = 1.0,
) -> Objective:
  """Trains u by Eq. 3.

  Args:
    net: `(x_t, time, cond, *, train) -> u` that reads `cond['interval']`, such as `DiT(interval=True)`.
    shape: of one image, `(h, w, c)`.
    times: drawn twice for each image; the later is t, the earlier r.
    jumps: the sampler's times, from 1 to 0: `grids.uniform(1)` for one step.
    different: share of the images with r < t; the others learn v.
    null, drop_rate: as in `diffusion`.
    scale: guidance that the network learns to contain: v becomes scale v + (1 - scale) u(x_t, t, t | null), where the
      condition is not dropped, so that a guided image costs no second pass.
    power: p of the adaptive weight sg(1 / (|error|^2 + 1e-3)^p); 0 is the squared error.
    time_scale: s; a network that sees the 1000 t of diffusion has a du/dt a thousand times as large, and diverges.
    parameterisation: of `rectified_flow()`: the network's output; one with a margin where it is singular.
    limit: samples are clipped to [-limit, limit]; None for latents.
  """
  null, jump_of = null or {}, partial(jump_of_network, net, time_scale, parameterisation)
  if not 0 <= different <= 1:
    raise ValueError(f'different is {different}; it is a share of the images, in [0, 1]')

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    keys = jax.random.split(key, 6)
    x0 = batch['image'].astype(jnp.float32)
    first, second = times(keys[0], len(x0)), times(keys[1], len(x0))
    t = jnp.maximum(first, second)
    jumping = jax.random.bernoulli(keys[2], different, t.shape)
    r = jnp.where(jumping, jnp.minimum(first, second), t)
    eps = noise_like(x0, keys[3])
    x_t, v = corrupt(FLOW, x0, eps, t), eps - x0
    full = named(null, batch)
    cond = drop(full, null, drop_rate, keys[4])
    rngs = {'dropout': keys[5]}
    if scale != 1:
      unguided = jump_of(params, nothing(null, full), train=False)(x_t, t, t)
      guided = scale * v + (1 - scale) * jax.lax.stop_gradient(unguided)
      v = jnp.where(_dropped(cond, null, x_t), v, guided)
    u, target = mean_flow_target(jump_of(params, cond, train=True, rngs=rngs), x_t, v, t, r)
    error = sum_per_image((u - target) ** 2)
    weight = jax.lax.stop_gradient((error + 1e-3) ** -power)
    squared = error / x0[0].size
    metrics = {
      'loss': jnp.mean(squared),  # the weighted one is near 1 all the time
      'velocity_error': mean_where(~jumping, squared),
      'jump_error': mean_where(jumping, squared),
    }
    return jnp.mean(weight * error), Aux(metrics)

  denoising = denoising_by_jumps(jump_of, shape, null, jumps, limit)
  phases = (Phase('mean_flow', 'net', loss),)
  return Objective(init_jumps(net, shape, null), phases, sampled(denoising), denoising)


def mean_flow_target(jump: Jump, x_t: Array, v: Array, t: Array, r: Array) -> tuple[Array, Array]:
  """u and what Eq. 3 wants it to be."""
  ones, zeros = jnp.ones_like(t), jnp.zeros_like(r)
  with attention.unfused():
    u, along = jax.jvp(jump, (x_t, t, r), (v, ones, zeros))
  return u, jax.lax.stop_gradient(v - expand(t - r, x_t) * along)


def jump_of_network(
  net: nn.Module, scale: float, output_is: Parameterisation, params: dict[str, Any], cond: Cond, **kwargs: Any
) -> Jump:
  def jump(x: Array, t: Array, r: Array) -> Array:
    told = {**cond, 'interval': scale * (t - r)}
    output: Any = net.apply({'params': params['net']}, x, scale * t, told, **kwargs)
    x0, eps, _ = output_is.predict(output.astype(jnp.float32), x, t)
    return eps - x0

  return jump


def init_jumps(net: nn.Module, shape: tuple[int, ...], null: dict[str, Any]) -> Callable[..., dict[str, Any]]:
  def init(key: Key[Array, ''], batch: dict[str, Any]) -> dict[str, Any]:
    return {'params': {'net': init_network(net, key, shape, {**named(null, batch), 'interval': jnp.zeros(1)})}}

  return init


def jumping(
  denoise: Callable[..., Prediction],
  process: Process,
  x: Float[Array, 'b ...'],
  times: Float[Array | np.ndarray, ' n'],
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
) -> Float[Array, 'b ...']:
  """A sampler, called as those of samplers/ are, that tells the denoiser where each step ends.  # Eq. 2"""

  def step(x: Array, t_r: tuple[Array, Array]) -> tuple[Array, None]:
    t, r = (jnp.full(x.shape[:1], time) for time in t_r)
    return corrupt(process, *denoise(x, t, {**(cond or {}), END: r})[:2], r), None

  grid = jnp.asarray(times)
  return jax.lax.scan(step, x, (grid[:-1], grid[1:]))[0]


def denoising_by_jumps(
  jump_of: JumpOf, shape: tuple[int, ...], null: dict[str, Any], jumps: np.ndarray, limit: float | None
) -> Denoising:
  times, along = np.asarray(jumps, np.float32), VELOCITY
  if times[0] != 1 or times[-1] != 0 or (np.diff(times) >= 0).any():
    raise ValueError(f'jumps are {times.tolist()}; they must fall from 1 to 0')

  def denoiser(params: dict[str, Any], frozen: Any) -> Callable[[Array, Array, Cond], Prediction]:
    def denoise(x_t: Array, t: Array, cond: Cond) -> Prediction:
      seen = {name: value for name, value in cond.items() if name != END}
      return along.predict(jump_of(params, seen, train=False)(x_t, t, cond.get(END, t)), x_t, t)

    return denoise

  return Denoising(
    process=lambda params: FLOW,
    denoiser=denoiser,
    condition=partial(named, null),
    sampler=partial(jumping, times=times),
    shape=shape,
    limit=limit,
    walk_times=grids.fine(times),
  )


def _dropped(cond: Cond, null: dict[str, Any], like: Array) -> Array:
  """Which images have the null condition."""
  same = jnp.ones(len(like), bool)
  for name, value in nothing(null, cond).items():
    same &= (cond[name] == value).reshape(len(like), -1).all(1)
  return expand(same, like)


def mean_where(where: Array, x: Float[Array, ' b']) -> Float[Array, '']:
  return jnp.where(where, x, 0.0).sum() / jnp.maximum(where.sum(), 1)
