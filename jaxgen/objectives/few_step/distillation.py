"""Students of an earlier stage of the run: progressive distillation, Reflow, and one step in place of a sampler.

A stage that learns from the stage before it begins with `of_last_stage` (Experiment.begin): what that stage would be
sampled with becomes the student's first parameters and `state.extra['teacher']`, so a checkpoint holds it.

`progressive` (Salimans & Ho 2022, Algorithm 2): one DDIM step of the student, of N, does what two of the teacher, of
2 N, do. From z_t, t one of the student's times, the teacher goes to m = t - 1/(2 N) and to s = t - 1/N, and

  (1)  x0~ = (z_s - (sigma_s/sigma_t) z_t) / (alpha_s - (sigma_s/sigma_t) alpha_t)

is the x0 with which DDIM takes z_t to z_s; it takes the place of the data in the loss of diffusion.py.

`paired` trains on pairs of a noise and what the teacher's sampler G makes of it,

  (2)  x_t = alpha_t G(eps) + sigma_t eps

of a rectified flow at all times this is Reflow (Liu et al. 2022), whose straight lines cross less, so that its paths
need fewer steps; at t = 1 alone, a student of one step (Luhman & Luhman 2021). The pairs are drawn while training: each
step adds `fresh` to a pool in `state.extra`, from which its batch is taken.

A student that cannot reach its target is a blur by squared errors; a perceptual distance may be added to them.

Differs from Luhman & Luhman and Liu et al.: they draw all pairs before training, which is a pool that never changes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.diffusion.diffusion import by_time, denoiser_of_network, diffusion, named, squared_error
from jaxgen.objectives.distances import Distance
from jaxgen.processes import parameterisation as parameterisations
from jaxgen.processes import times as time_samplers
from jaxgen.processes import weighting as weightings
from jaxgen.processes.parameterisation import Parameterisation
from jaxgen.processes.process import Process, corrupt, expand, image_noise, noise_like
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.typing import Array, Batch, Float, Key

Guide = Callable[[Callable], Callable]


def of_last_stage(old: Any, fresh: Any) -> Any:
  """The first state of a stage that learns from the one before: all of it fresh, but for the networks.

  Args:
    old: the state after the last stage.
    fresh: a new state of this stage, with 'teacher' in its `extra`.
  """
  net = old.ema.get('net', old.params['net'])
  return fresh.replace(
    step=old.step,
    params={**fresh.params, 'net': net},
    ema=dict.fromkeys(fresh.ema, net),
    extra={**fresh.extra, 'teacher': net},
  )


def progressive(
  net: nn.Module,
  process: Process,
  *,
  shape: tuple[int, ...],
  steps: int,
  parameterisation: Parameterisation,
  loss_in: Parameterisation | None = None,
  weighting: weightings.Weighting = weightings.uniform,
  distance: Distance | None = None,
  null: dict[str, Any] | None = None,
  guide_teacher: Guide = lambda denoise: denoise,
  limit: float | None = 1.0,
) -> Objective:
  """Trains `net` to do in `steps` DDIM steps what the stage before does in twice as many.

  Args:
    net, process, shape, parameterisation, loss_in, weighting, null, limit: as in `diffusion`. A loss on eps alone says
      nothing where alpha = 0; the paper's is on x0, with `weighting.truncated_snr`.
    steps: N, of the student; t is i/N for i = 1 ... N.
    distance: of x0 from x0~, added to the squared error; of objectives/distances.py.
    guide_teacher: denoiser to denoiser, such as `partial(guided, ...)` in the first of several stages: its guidance is
      learned, and later stages and sampling go without.
  """
  if steps < 1:
    raise ValueError(f'steps is {steps}; the student takes at least one')
  null = null or {}
  base = diffusion(
    net,
    process,
    shape=shape,
    parameterisation=parameterisation,
    times=time_samplers.discrete(steps),
    sampler=partial(ddim, process=process, times=grids.uniform(steps), clip=limit),
    null=null,
    limit=limit,
  )
  denoiser_of = denoiser_of_network(net, process, parameterisation)
  of_x0 = parameterisations.x0(process)

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    x0, cond = batch['image'].astype(jnp.float32), named(null, batch)
    t = time_samplers.discrete(steps)(time_key, len(x0))
    eps = noise_like(x0, noise_key)
    z_t = corrupt(process, x0, eps, t)
    teacher = guide_teacher(denoiser_of({'net': state.extra['teacher']}, train=False))
    target = progressive_target(lambda z, t: teacher(z, t, cond), process, z_t, t, steps)
    perfect = of_x0.predict(jax.lax.stop_gradient(target), z_t, t)
    prediction = denoiser_of(params, train=True, rngs={'dropout': dropout_key})(z_t, t, cond)
    each = weighting(process, t) * squared_error(loss_in or parameterisation, prediction, perfect, t)
    if distance is not None:
      each += distance(frozen, prediction.x0, perfect.x0)
    return jnp.mean(each), Aux(by_time(each, t))

  return base._replace(init=_with_teacher(base.init), phases=(Phase('progressive', 'net', loss),))


def progressive_target(denoise: Callable, process: Process, z_t: Array, t: Array, steps: int) -> Array:
  """x0~ of Eq. 1."""

  def step(z: Array, now: Array, then: Array) -> Array:
    prediction = denoise(z, now)
    return expand(process.alpha(then), z) * prediction.x0 + expand(process.sigma(then), z) * prediction.eps

  middle, s = t - 0.5 / steps, jnp.maximum(t - 1 / steps, 0.0)
  s = jnp.where(s < 0.25 / steps, 0.0, s)  # rounded
  z_s = step(step(z_t, t, middle), middle, s)
  ratio = process.sigma(s) / process.sigma(t)
  return (z_s - expand(ratio, z_t) * z_t) / expand(process.alpha(s) - ratio * process.alpha(t), z_t)


def paired(
  net: nn.Module,
  process: Process,
  *,
  shape: tuple[int, ...],
  parameterisation: Parameterisation,
  times: time_samplers.TimeSampler,
  sampler: Callable[..., Array],
  teacher: Callable[..., Array],
  pool: int,
  fresh: int,
  loss_in: Parameterisation | None = None,
  distance: Distance | None = None,
  null: dict[str, Any] | None = None,
  guide_teacher: Guide = lambda denoise: denoise,
  limit: float | None = 1.0,
) -> Objective:
  """Trains `net` on pairs of the stage before, Eq. 2.

  Args:
    net, process, shape, parameterisation, times, sampler, loss_in, null, limit: as in `diffusion`.
    teacher: G, `(denoise, *, x, cond, keys) -> x0`, such as `partial(euler, process=process, times=uniform(25))`;
      a sampler without noise.
    distance: of x0 from G(eps), added to the squared error; of objectives/distances.py.
    pool: pairs that are kept.
    fresh: pairs that a step draws in place of the oldest; with conditions of the batch.
    guide_teacher: denoiser to denoiser, for G.
  """
  null = null or {}
  if not 1 <= fresh <= pool:
    raise ValueError(f'{fresh} fresh pairs for a pool of {pool}; wanted at least one, and a pool that holds them')
  base = diffusion(
    net,
    process,
    shape=shape,
    parameterisation=parameterisation,
    times=times,
    sampler=sampler,
    loss_in=loss_in,
    null=null,
    limit=limit,
  )
  denoiser_of = denoiser_of_network(net, process, parameterisation)

  def init(key: Key[Array, ''], batch: dict[str, Any]) -> dict[str, Any]:
    made = _with_teacher(base.init)(key, batch)
    cond = {name: jnp.zeros((pool, *a.shape[1:]), a.dtype) for name, a in named(null, batch).items()}
    empty = {'x0': jnp.zeros((pool, *shape)), 'eps': jnp.zeros((pool, *shape)), 'cond': cond, 'drawn': jnp.int32(0)}
    return made | {'extra': made['extra'] | {'pairs': empty}}

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    noise_key, row_key, time_key, dropout_key = jax.random.split(key, 4)
    size = len(batch['image'])
    if fresh > size:
      raise ValueError(f'{fresh} fresh pairs of a batch of {size}: a pair takes its condition from the batch')
    denoise = guide_teacher(denoiser_of({'net': state.extra['teacher']}, train=False))
    pairs = refill(state.extra['pairs'], partial(teacher, denoise), named(null, batch), noise_key, fresh)
    row = jax.random.randint(row_key, (size,), 0, jnp.minimum(pairs['drawn'], pool))
    x0, eps, cond = jax.tree.map(lambda a: a[row], (pairs['x0'], pairs['eps'], pairs['cond']))
    t = times(time_key, size)
    x_t = corrupt(process, x0, eps, t)
    prediction = denoiser_of(params, train=True, rngs={'dropout': dropout_key})(x_t, t, cond)
    perfect = parameterisation.predict(parameterisation.target(x0, eps, t), x_t, t)
    each = squared_error(loss_in or parameterisation, prediction, perfect, t)
    if distance is not None:
      each += distance(frozen, prediction.x0, x0)
    return jnp.mean(each), Aux(by_time(each, t), {'pairs': pairs})

  return base._replace(init=init, phases=(Phase('paired', 'net', loss),))


def refill(
  pairs: dict[str, Any], generate: Callable[..., Array], cond: dict[str, Array], key: Key[Array, ''], fresh: int
) -> dict[str, Any]:
  """The pool with `fresh` new pairs, of the first conditions, in place of the oldest."""
  cond = {name: value[:fresh] for name, value in cond.items()}
  keys = jax.random.split(key, fresh)
  eps = image_noise(keys, pairs['eps'].shape[1:])
  x0 = jax.lax.stop_gradient(generate(x=eps, cond=cond, keys=keys))
  place = (pairs['drawn'] + jnp.arange(fresh)) % len(pairs['eps'])
  new = {'x0': x0, 'eps': eps, 'cond': cond}
  kept = jax.tree.map(lambda old, a: old.at[place].set(a), {name: pairs[name] for name in new}, new)
  return kept | {'drawn': pairs['drawn'] + fresh}


def _with_teacher(init: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
  def with_teacher(key: Key[Array, ''], batch: dict[str, Any]) -> dict[str, Any]:
    made = init(key, batch)
    return made | {'extra': made['extra'] | {'teacher': made['params']['net']}}

  return with_teacher
