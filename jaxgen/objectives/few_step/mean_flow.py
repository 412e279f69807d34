"""MeanFlow (Geng et al. 2025): the network learns the velocity of a whole jump, and one to four jumps make an image.

Rectified flow has x_t = (1 - t) x0 + t eps and v = eps - x0. Between two times r <= t on a path of its ODE,

  (1)  u(x_t, t, r) = 1/(t - r) integral from r to t of v(x_s, s) ds,   u(x_t, t, t) = v(x_t, t)
  (2)  x_r = x_t - (t - r) u(x_t, t, r)

Eq. 1 is differentiated along the path, with sg the stopped gradient:

  (3)  u = sg(v - (t - r) du/dt),   du/dt = v du/dx + du/dt at fixed x     (one forward-mode pass)

Guidance is learned with the target (their Eq. 19, and its appendix): v becomes

  (4)  w v + k u(x_t, t, t | c) + (1 - w - k) u(x_t, t, t | null),   of the effective scale w / (1 - k)

The network's time is s t, and cond['interval'] is s (t - r), with s the `time_scale`. As a denoiser it is u(x_t, t, t),
or u(x_t, t, r) where cond[END] is r; x0 and eps are then the ends of the straight line through x_t along u. Its output
is u, or another parameterisation of the end of that line: of x0, u = (x_t - x0) / t, and one step from noise is the
output itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.layers import attention
from jaxgen.objectives.base import Aux, Denoising, InitFn, Objective, Phase, sampled
from jaxgen.objectives.conditioning import Conditioner, unconditional
from jaxgen.objectives.diffusion.diffusion import init_of, trained
from jaxgen.objectives.network import NET, Network
from jaxgen.objectives.weight_map import map_of, weighted
from jaxgen.processes.parameterisation import Parameterise, velocity
from jaxgen.processes.process import Denoiser, Prediction, Process, corrupt, expand, noise_like, sum_per_image
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.times import TimeSampler
from jaxgen.samplers import grids
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.sampler import Sampler, Times
from jaxgen.typing import Array, Batch, Cond, Float, Key

END = 'end'
Jump = Callable[[Array, Array, Array], Array]  # (x_t, t, r) -> u


@runtime_checkable
class JumpOf(Protocol):
  """Gives the jump of some parameters under a condition."""

  def __call__(
    self, params: dict[str, Any], frozen: Any, cond: Cond, *, train: bool, rngs: Mapping[str, Array] | None = None
  ) -> Jump: ...


FLOW = rectified_flow()


def mean_flow(
  net: nn.Module,
  *,
  shape: tuple[int, ...],
  times: TimeSampler,
  jumps: Float[np.ndarray, ' n'],
  different: float = 0.25,
  conditioner: Conditioner = unconditional,
  scale: float = 1.0,
  kappa: float = 0.0,
  power: float = 1.0,
  time_scale: float = 1.0,
  parameterisation: Parameterise = velocity,
  limit: float | None = 1.0,
) -> Objective:
  """Trains u by Eq. 3.

  Args:
    net: `(x_t, time, cond, *, train) -> u` that reads `cond['interval']`, such as `DiT(interval=True)`.
    shape: shape of one image, `(h, w, c)`.
    times: sampled twice for each image; the later is t, the earlier r.
    jumps: the sampler's times, from 1 to 0: `grids.uniform(1)` for one step.
    different: share of the images with r < t; the others train v.
    conditioner: as in `diffusion`.
    scale: w of Eq. 4, guidance that is distilled into the network where the condition is not dropped, so that a guided
      image costs no second pass.
    kappa: k of Eq. 4, in [0, 1); where it is not 0, a training step has one more pass.
    power: p of the adaptive weight sg(1 / (|error|^2 + 1e-3)^p); 0 is the squared error.
    time_scale: s; a network that sees the 1000 t of diffusion has a du/dt a thousand times as large, and diverges.
    parameterisation: the meaning of the network's output; one with a margin where it is singular.
    limit: samples are clipped to [-limit, limit]; None for latents.
  """
  network = Network(net)
  jump_of = jump_of_network(network, time_scale, parameterisation)
  conditioner.check()
  if not 0 <= different <= 1:
    raise ValueError(f'different is {different}; it is a share of the images, in [0, 1]')
  if not 0 <= kappa < 1:
    raise ValueError(f'kappa is {kappa}; it is in [0, 1), and the effective guidance is scale / (1 - kappa)')

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    keys = jax.random.split(key, 7)
    x0 = batch['image'].astype(jnp.float32)
    first, second = times(keys[0], len(x0)), times(keys[1], len(x0))
    t = jnp.maximum(first, second)
    jumping = jax.random.bernoulli(keys[2], different, t.shape)
    r = jnp.where(jumping, jnp.minimum(first, second), t)
    eps = noise_like(x0, keys[3])
    x_t, v = corrupt(FLOW, x0, eps, t), eps - x0
    cond, dropped = conditioner.dropped(params, frozen, batch, drop_key=keys[4], encode_key=keys[6])
    rngs = {'dropout': keys[5]}
    if (scale != 1 or kappa) and conditioner.nullable:
      unguided = jump_of(params, frozen, conditioner.without(params, frozen, cond), train=False)(x_t, t, t)
      conditional = jump_of(params, frozen, cond, train=False)(x_t, t, t) if kappa else jnp.zeros_like(v)
      guided = scale * v + jax.lax.stop_gradient(kappa * conditional + (1 - scale - kappa) * unguided)  # Eq. 4
      v = jnp.where(expand(dropped, x_t), v, guided)
    u, target = mean_flow_target(jump_of(params, frozen, cond, train=True, rngs=rngs), x_t, v, t, r)
    squares = (u - target) ** 2
    weight = jax.lax.stop_gradient((sum_per_image(squares) + 1e-3) ** -power)  # without the weight map
    error = sum_per_image(weighted(squares, map_of(batch)))
    squared = error / x0[0].size
    metrics = {
      'loss': jnp.mean(squared),  # the weighted one is near 1 all the time
      'velocity_error': mean_where(~jumping, squared),
      'jump_error': mean_where(jumping, squared),
    }
    return jnp.mean(weight * error), Aux(metrics)

  denoising = denoising_by_jumps(jump_of, shape, conditioner, jumps, limit)
  phases = (Phase('mean_flow', trained(conditioner), loss),)
  init = init_jumps(network, shape, conditioner)
  return Objective(init, phases, sampled(denoising), denoising, conditioner, {NET: net})


def mean_flow_target(jump: Jump, x_t: Array, v: Array, t: Array, r: Array) -> tuple[Array, Array]:
  """u and its target of Eq. 3."""
  ones, zeros = jnp.ones_like(t), jnp.zeros_like(r)
  with attention.with_forward_derivative():
    u, along = jax.jvp(jump, (x_t, t, r), (v, ones, zeros))
  return u, jax.lax.stop_gradient(v - expand(t - r, x_t) * along)


def jump_of_network(network: Network, scale: float, parameterisation: Parameterise) -> JumpOf:
  """The velocity of a jump, from a network whose inputs are `scale` times the time and the interval."""
  space = parameterisation(FLOW)

  def jump_of(params: dict[str, Any], frozen: Any, cond: Cond, **kwargs: Any) -> Jump:
    apply = network.apply(params, **kwargs)

    def jump(x: Array, t: Array, r: Array) -> Array:
      output = apply(x, scale * t, {**cond, 'interval': scale * (t - r)})
      x0, eps, _ = space.predict(output.astype(jnp.float32), x, t)
      return eps - x0

    return jump

  return jump_of


def init_jumps(network: Network, shape: tuple[int, ...], conditioner: Conditioner) -> InitFn:
  """`Objective.init` of a network with the interval of a jump beside its condition."""

  def encode(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Array) -> Cond:
    return {**conditioner.encode(params, frozen, fields, keys), 'interval': jnp.zeros(len(keys))}

  return init_of(network, shape, conditioner._replace(encode=encode))


def jumping(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
) -> Float[Array, 'b ...']:
  """A solver that gives the denoiser the end of each step.  # Eq. 2"""

  def step(x: Array, t_r: tuple[Array, Array]) -> tuple[Array, None]:
    t, r = (jnp.full(x.shape[:1], time) for time in t_r)
    return corrupt(process, *denoise(x, t, {**(cond or {}), END: r})[:2], r), None

  grid = jnp.asarray(times)
  return jax.lax.scan(step, x, (grid[:-1], grid[1:]))[0]


def denoising_by_jumps(
  jump_of: JumpOf, shape: tuple[int, ...], conditioner: Conditioner, jumps: np.ndarray, limit: float | None
) -> Denoising:
  """The parts of sampling by jumps."""
  times, along = np.asarray(jumps, np.float32), velocity(FLOW)
  if times[0] != 1 or times[-1] != 0 or (np.diff(times) >= 0).any():
    raise ValueError(f'jumps are {times.tolist()}; they must fall from 1 to 0')

  def denoiser(params: dict[str, Any], frozen: Any) -> Denoiser:
    def denoise(x_t: Array, t: Array, cond: Cond) -> Prediction:
      seen = {name: value for name, value in cond.items() if name != END}
      return along.predict(jump_of(params, frozen, seen, train=False)(x_t, t, cond.get(END, t)), x_t, t)

    return denoise

  return Denoising(
    process=lambda params: FLOW,
    denoiser=denoiser,
    condition=conditioner.condition,
    sampler=Sampler(jumping, times),
    shape=shape,
    limit=limit,
    walk=Sampler(ddpm, grids.fine(times)),
  )


def mean_where(where: Array, x: Float[Array, ' b']) -> Float[Array, '']:
  return jnp.where(where, x, 0.0).sum() / jnp.maximum(where.sum(), 1)
