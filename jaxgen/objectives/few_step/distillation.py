"""Students of an earlier stage of the run: progressive distillation, Reflow, and one step in place of a sampler.

A stage that distils the stage before it begins with `of_last_stage` (Experiment.begin): the parameters with which that
stage would be sampled become the student's first parameters and `state.extra['teacher']`, so a checkpoint holds them.

`progressive` (Salimans & Ho 2022, Algorithm 2): one of the student's N DDIM steps replaces two of the teacher's 2 N.
From z_t, t one of the student's times, the teacher goes to m = t - 1/(2 N) and to s = t - 1/N, and

  (1)  x0~ = (z_s - (sigma_s/sigma_t) z_t) / (alpha_s - (sigma_s/sigma_t) alpha_t)

is the x0 with which DDIM takes z_t to z_s; it takes the place of the data in the loss of diffusion.py.

`paired` trains on pairs of a noise and what the teacher's sampler G makes of it,

  (2)  x_t = alpha_t G(eps) + sigma_t eps

of a rectified flow at all times this is Reflow (Liu et al. 2022), whose straight lines cross less, so that its paths
need fewer steps; at t = 1 alone, a student of one step (Luhman & Luhman 2021). The pairs are made during training: each
step adds `fresh` to a pool in `state.extra`, from which its batch is taken.

Squared errors alone make a student blurred where it cannot reach its target; a perceptual distance may be added.

Differs from Luhman & Luhman and Liu et al.: they make all pairs before training, a pool that never changes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, InitFn, Objective, Phase
from jaxgen.objectives.conditioning import Conditioner, unconditional
from jaxgen.objectives.diffusion.diffusion import by_time, diffusion, squared_error
from jaxgen.objectives.distances import Distance
from jaxgen.objectives.network import NET, Network, averaged, weights
from jaxgen.objectives.weight_map import check_no_map, map_of, masked
from jaxgen.processes import parameterisation as parameterisations
from jaxgen.processes import times as time_samplers
from jaxgen.processes import weighting as weightings
from jaxgen.processes.parameterisation import Parameterise, denoiser
from jaxgen.processes.process import Denoiser, Prediction, Process, corrupt, expand, image_noise, noise_like
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.sampler import Guide, Sampler, Without
from jaxgen.typing import Array, Batch, Float, Key


@runtime_checkable
class DenoiserOf(Protocol):
  """Gives the denoiser of some parameters."""

  def __call__(self, params: dict[str, Any], *, train: bool, rngs: Mapping[str, Array] | None = None) -> Denoiser: ...


def of_last_stage(old: Any, fresh: Any) -> Any:
  """The first state of a stage that distils the one before: new but for the networks.

  Args:
    old: the state after the last stage.
    fresh: a new state of this stage, with 'teacher' in its `extra`.
  """
  net = averaged(old)
  return fresh.replace(
    step=old.step,
    params={**fresh.params, NET: net},
    ema=dict.fromkeys(fresh.ema, net),
    extra={**fresh.extra, 'teacher': net},
  )


def progressive(
  net: nn.Module,
  process: Process,
  *,
  shape: tuple[int, ...],
  steps: int,
  parameterisation: Parameterise,
  loss_in: Parameterise | None = None,
  weighting: weightings.Weighting = weightings.uniform,
  distance: Distance | None = None,
  conditioner: Conditioner = unconditional,
  guide_teacher: Sequence[Guide] = (),
  limit: float | None = 1.0,
) -> Objective:
  """Trains `net` to sample in `steps` DDIM steps as the stage before does in twice as many.

  Args:
    net, process, shape, parameterisation, loss_in, weighting, conditioner, limit: as in `diffusion`. A loss on eps
      alone is undefined where alpha = 0; the paper's is on x0, with `weighting.truncated_snr`.
    steps: N, of the student; t is i/N for i = 1 ... N.
    distance: a distance of objectives/distances.py between x0 and x0~, added to the squared error.
    guide_teacher: wrappers of the teacher, such as `(classifier_free(3.0),)` in the first of several stages: its
      guidance is learned, and later stages and sampling go without.
  """
  if steps < 1:
    raise ValueError(f'steps is {steps}; the student takes at least one')
  base = diffusion(
    net,
    process,
    shape=shape,
    parameterisation=parameterisation,
    times=time_samplers.discrete(steps),
    sampler=Sampler(ddim, grids.uniform(steps)),
    conditioner=conditioner,
    guide=(clip(limit),),
    limit=limit,
  )
  denoiser_of, judged = _denoiser_of(net, process, parameterisation), (loss_in or parameterisation)(process)
  of_x0 = parameterisations.x0(process)

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    time_key, noise_key, dropout_key, encode_key = jax.random.split(key, 4)
    x0 = batch['image'].astype(jnp.float32)
    cond, without = conditioner.condition(params, frozen, batch, jax.random.split(encode_key, len(x0)))
    t = time_samplers.discrete(steps)(time_key, len(x0))
    eps = noise_like(x0, noise_key)
    z_t = corrupt(process, x0, eps, t)
    taught = denoiser_of({**params, NET: state.extra['teacher']}, train=False)
    teacher = _guided(taught, guide_teacher, process, without)
    target = progressive_target(lambda z, t: teacher(z, t, cond), process, z_t, t, steps)
    perfect = of_x0.predict(jax.lax.stop_gradient(target), z_t, t)
    prediction = denoiser_of(params, train=True, rngs={'dropout': dropout_key})(z_t, t, cond)
    weight = map_of(batch)
    each = weighting(process, t) * squared_error(judged, prediction, perfect, t, weight)
    if distance is not None:
      student, teachers, factor = masked(prediction.x0, perfect.x0, weight)
      each += factor * distance(frozen, student, teachers)
    return jnp.mean(each), Aux(by_time(each, t))

  return base._replace(init=_with_teacher(base.init), phases=(Phase('progressive', NET, loss),))


def progressive_target(
  denoise: Callable[[Array, Array], Prediction], process: Process, z_t: Array, t: Array, steps: int
) -> Array:
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
  parameterisation: Parameterise,
  times: time_samplers.TimeSampler,
  sampler: Sampler,
  teacher: Sampler,
  pool: int,
  fresh: int,
  loss_in: Parameterise | None = None,
  distance: Distance | None = None,
  conditioner: Conditioner = unconditional,
  guide: Sequence[Guide] = (),
  guide_teacher: Sequence[Guide] = (),
  limit: float | None = 1.0,
) -> Objective:
  """Trains `net` on pairs of the stage before, Eq. 2.

  Args:
    net, process, shape, parameterisation, times, sampler, loss_in, conditioner, limit: as in `diffusion`.
    teacher: G, a sampler without noise, such as `Sampler(euler, uniform(25))`.
    distance: a distance of objectives/distances.py between x0 and G(eps), added to the squared error.
    pool: pairs that are kept.
    fresh: new pairs of a step, in place of the oldest, with conditions of the batch.
    guide: wrappers of the student's denoiser when sampling.
    guide_teacher: wrappers of the teacher for G, such as `(classifier_free(3.0), clip())`.
  """
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
    conditioner=conditioner,
    guide=guide,
    limit=limit,
  )
  denoiser_of, space = _denoiser_of(net, process, parameterisation), parameterisation(process)
  judged = space if loss_in is None else loss_in(process)

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    check_no_map(batch, 'training on pairs of a teacher')
    made = _with_teacher(base.init)(key, frozen, batch)
    fields = conditioner.select(batch)
    cond = {name: jnp.zeros((pool, *a.shape[1:]), a.dtype) for name, a in fields.items()}
    empty = {'x0': jnp.zeros((pool, *shape)), 'eps': jnp.zeros((pool, *shape)), 'cond': cond, 'drawn': jnp.int32(0)}
    return made | {'extra': made['extra'] | {'pairs': empty}}

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    noise_key, row_key, time_key, dropout_key, encode_key = jax.random.split(key, 5)
    size = len(batch['image'])
    if fresh > size:
      raise ValueError(f'{fresh} fresh pairs of a batch of {size}: a pair takes its condition from the batch')
    taught = denoiser_of({**params, NET: state.extra['teacher']}, train=False)

    def generate(x: Array, fields: dict[str, Array], keys: Key[Array, ' b']) -> Array:
      cond, without = conditioner.condition(params, frozen, fields, keys)
      denoise = _guided(taught, guide_teacher, process, without)
      return teacher.solve(denoise, process, x, teacher.times, cond=cond, keys=keys)

    pairs = refill(state.extra['pairs'], generate, conditioner.select(batch), noise_key, fresh)
    row = jax.random.randint(row_key, (size,), 0, jnp.minimum(pairs['drawn'], pool))
    x0, eps, fields = jax.tree.map(lambda a: a[row], (pairs['x0'], pairs['eps'], pairs['cond']))
    cond, _ = conditioner.condition(params, frozen, fields, jax.random.split(encode_key, size))
    t = times(time_key, size)
    x_t = corrupt(process, x0, eps, t)
    prediction = denoiser_of(params, train=True, rngs={'dropout': dropout_key})(x_t, t, cond)
    perfect = space.predict(space.target(x0, eps, t), x_t, t)
    each = squared_error(judged, prediction, perfect, t)
    if distance is not None:
      each += distance(frozen, prediction.x0, x0)
    return jnp.mean(each), Aux(by_time(each, t), {'pairs': pairs})

  return base._replace(init=init, phases=(Phase('paired', NET, loss),))


def refill(
  pairs: dict[str, Any],
  generate: Callable[[Array, dict[str, Array], Array], Array],
  fields: dict[str, Array],
  key: Key[Array, ''],
  fresh: int,
) -> dict[str, Any]:
  """The pool with `fresh` new pairs, of the batch's first conditions, in place of the oldest."""
  fields = {name: value[:fresh] for name, value in fields.items()}
  keys = jax.random.split(key, fresh)
  eps = image_noise(keys, pairs['eps'].shape[1:])
  x0 = jax.lax.stop_gradient(generate(eps, fields, keys))
  place = (pairs['drawn'] + jnp.arange(fresh)) % len(pairs['eps'])
  new = {'x0': x0, 'eps': eps, 'cond': fields}
  kept = jax.tree.map(lambda old, a: old.at[place].set(a), {name: pairs[name] for name in new}, new)
  return kept | {'drawn': pairs['drawn'] + fresh}


def _denoiser_of(net: nn.Module, process: Process, parameterisation: Parameterise) -> DenoiserOf:
  network = Network(net)

  def denoiser_of(params: dict[str, Any], *, train: bool, rngs: Mapping[str, Array] | None = None) -> Denoiser:
    return denoiser(network.apply(params, train=train, rngs=rngs), process, parameterisation)

  return denoiser_of


def _guided(denoise: Denoiser, guides: Sequence[Guide], process: Process, without: Without) -> Denoiser:
  for guide in guides:
    denoise = guide(denoise, process, without)
  return denoise


def _with_teacher(init: InitFn) -> InitFn:
  def with_teacher(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    made = init(key, frozen, batch)
    return made | {'extra': made['extra'] | {'teacher': weights(made['params'])}}

  return with_teacher
