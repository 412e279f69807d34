"""DiffusionNFT: the model goes towards its own good images and away from its bad ones, by the loss it was trained with.

The images of a group, sampled by the policy `old`, have a share of goodness r from their advantage A
(rollouts.py, Eq. 1), and from the predictions of x0 of the model and of `old` two implicit policies are made:

  (1)  r    = (1 + clip(A / c, -1, 1)) / 2
  (2)  x0+  = (1 - beta) x0_old + beta x0,      x0-  = (1 + beta) x0_old - beta x0
  (3)  L    = mean [ r l(x0+) + (1 - r) l(x0-) ] c / beta + kl mean |x0 - x0_ref|^2
  (4)  l(y) = mean |y - x0*|^2 / sg(mean |y - x0*|),   x0* the sampled image

At r = 1/2 the model is pulled both ways and stays `old`. Any sampler makes the images, and there is no likelihood.
Zheng et al. 2025, "DiffusionNFT: Online Diffusion Reinforcement with Forward Process". `old` is an average of the model
that follows it slowly, such as Average('net', ema.constant(0.9)): Eq. 2 needs it to lag.

Differs from Zheng et al.: images stay in a pool for some steps, so that one is learned from more than once and was
sampled by an `old` that has moved since; and images may be sampled with guidance, which the model then takes up.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, Objective, Phase, denoising_of, trained_names
from jaxgen.objectives.preference.rollouts import Rollouts, advantages, empty_pool, put, take
from jaxgen.processes.process import corrupt, expand, noise_like
from jaxgen.processes.times import TimeSampler
from jaxgen.typing import Array, Batch, Float, Key


def nft(
  objective: Objective,
  *,
  times: TimeSampler,
  rollouts: Rollouts,
  pool: int,
  old: Mapping[str, str],
  beta: float = 1.0,
  clip: float = 5.0,
  kl: float = 0.0,
) -> Objective:
  """Trains the networks of a diffusion objective by Eq. 3.

  Args:
    objective: one with a denoiser.
    times: time sampler.
    rollouts: samples and judges the images.
    pool: images that are kept, from which a step takes as many as the batch has rows.
    old: names of the averages that are `old`, by the keys of params: {'net': 'old_net'}.
    beta: how far the implicit policies lie from `old`.
    clip: c; advantages are clipped to it.
    kl: weight of the distance from the reference, which is in `frozen` under the names of the parameters; 0 needs none.
  """
  d, names, conditioner = denoising_of(objective), trained_names(objective), objective.conditioner
  rollouts.check()
  new_images = rollouts.prompts * rollouts.group
  if pool < new_images:
    raise ValueError(f'a pool of {pool} images for {new_images} new ones a step; use a larger pool')
  if set(old) != set(names):
    raise ValueError(f'old names averages of {sorted(old)}; the objective trains {sorted(names)}')

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    made = objective.init(key, frozen, batch)
    fields = {name: jnp.zeros(a.shape, a.dtype) for name, a in conditioner.select(batch).items()}
    rows = {'x0': jnp.zeros((1, *d.shape)), 'good': jnp.zeros(1), 'fields': fields}
    return made | {'extra': {**made.get('extra', {}), 'images': empty_pool(rows, pool)}}

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    draw_key, take_key, time_key, noise_key, encode_key = jax.random.split(key, 5)
    policy = {**params, **{name: _average(state, old[name]) for name in names}}
    images, repeated, rewards = rollouts.draw(policy, frozen, batch, conditioner, draw_key)
    good = goodness(rewards, clip).reshape(-1)
    kept = put(
      state.extra['images'],
      {'x0': d.encode(frozen, images), 'good': good, 'fields': conditioner.select(repeated)},
    )
    rows, size = take(kept, len(batch['image']), take_key), len(batch['image'])
    process, t = d.process(params), times(time_key, size)
    x_t = corrupt(process, rows['x0'], noise_like(rows['x0'], noise_key), t)

    def x0_of(of: dict[str, Any]) -> Array:
      cond, _ = d.condition(of, frozen, rows['fields'], jax.random.split(encode_key, size))
      return d.denoiser(of, frozen)(x_t, t, cond).x0

    mine, theirs = x0_of(params), jax.lax.stop_gradient(x0_of(policy))
    each = negative_aware(mine, theirs, rows['x0'], rows['good'], beta=beta) * clip
    total, metrics = jnp.mean(each), {'reward': rewards.mean(), 'reward_std': rewards.std(axis=1).mean()}
    metrics['moved'] = jnp.mean((mine - theirs) ** 2)
    if kl:
      reference = jax.lax.stop_gradient(x0_of({**params, **{name: frozen[name] for name in names}}))
      metrics['kl'] = jnp.mean((mine - reference) ** 2)
      total += kl * metrics['kl']
    return total, Aux(metrics, {'images': kept})

  phase = Phase('nft', names if len(names) > 1 else names[0], loss)
  return objective._replace(init=init, phases=(phase,))


def goodness(rewards: Float[Array, 'g i'], clip: float) -> Float[Array, 'g i']:
  """Eq. 1."""
  return (1 + jnp.clip(advantages(rewards, over_all=True) / clip, -1, 1)) / 2


def negative_aware(
  mine: Float[Array, 'b ...'],
  old: Float[Array, 'b ...'],
  drawn: Float[Array, 'b ...'],
  good: Float[Array, ' b'],
  *,
  beta: float,
) -> Float[Array, ' b']:
  """The brackets of Eq. 3 over beta, of each image."""
  axes = tuple(range(1, mine.ndim))

  def one(x0: Array) -> Array:
    scale = jnp.maximum(jnp.mean(jnp.abs(x0 - drawn), axis=axes), 1e-5)
    return jnp.mean((x0 - drawn) ** 2 / expand(jax.lax.stop_gradient(scale), x0), axis=axes)  # Eq. 4

  towards, away = (1 - beta) * old + beta * mine, (1 + beta) * old - beta * mine  # Eq. 2
  return (good * one(towards) + (1 - good) * one(away)) / beta


def _average(state: Any, name: str) -> Any:
  if name not in state.ema:
    raise ValueError(f'the sampling policy is the average {name!r}; the run keeps {sorted(state.ema) or "none"}')
  return state.ema[name]
