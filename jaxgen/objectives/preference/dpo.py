"""Diffusion-DPO: the model learns to denoise the better of two images for one prompt better than a reference does.

With e(x) = mean |F(x_hat) - F(x)|^2 the error of the denoiser in one space F, of eps in the paper, and e_ref that of
the frozen network that training starts from, at one time and with one noise for both images w (better) and l,

  (1)  L = -log sigmoid(-beta/2 [(e(x_w) - e_ref(x_w)) - (e(x_l) - e_ref(x_l))])

Wallace et al. 2023, "Diffusion Model Alignment Using Direct Preference Optimization". beta is that of their code, where
the errors are means over all values, and T omega(lambda_t) is a part of it.

Pairs come from people, in a batch's 'image' and 'rejected' (`jaxgen vote export`, data/datasets/preferences.py), or
from a reward: the best and the worst of a group that the reference samples in the step (rollouts.py).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, Denoising, Objective, Phase, denoising_of, trained_names
from jaxgen.objectives.conditioning import Conditioner
from jaxgen.objectives.diffusion.diffusion import squared_error
from jaxgen.objectives.preference.rollouts import Rollouts, empty_pool, put, take
from jaxgen.processes.parameterisation import Parameterise, eps
from jaxgen.processes.process import corrupt, noise_like
from jaxgen.processes.times import TimeSampler
from jaxgen.typing import Array, Batch, Float, Key

REJECTED = 'rejected'  # the worse image of a pair in a batch; 'image' is the better one


def dpo(
  objective: Objective,
  *,
  times: TimeSampler,
  beta: float = 5000.0,
  space: Parameterise = eps,
  rollouts: Rollouts | None = None,
  pool: int = 0,
) -> Objective:
  """Trains the networks of a diffusion objective by Eq. 1.

  Args:
    objective: one with a denoiser; the reference is in `frozen` under the names of its parameters, as an adapter's base
      is, so that of a LoRA (objectives/adapted.py) no second network is needed.
    times: time sampler.
    beta: how close the model stays to the reference: the larger, the closer.
    space: F.
    rollouts: makes the pairs; None for pairs in the batch.
    pool: pairs of rollouts that are kept, from which a step takes as many as the batch has rows.
  """
  d, names, conditioner = denoising_of(objective), trained_names(objective), objective.conditioner
  if rollouts is not None:
    rollouts.check()
    if pool < rollouts.prompts:
      raise ValueError(f'a pool of {pool} pairs for {rollouts.prompts} new ones a step; use a larger pool')

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    made = objective.init(key, frozen, batch)
    if rollouts is None:
      if REJECTED not in batch:
        raise ValueError(f'the batch has no {REJECTED!r}, the worse image of each pair; it has {sorted(batch)}')
      return made
    fields = {name: jnp.zeros(a.shape, a.dtype) for name, a in conditioner.select(batch).items()}
    image = jnp.zeros((1, *d.shape))
    pairs = {'better': image, 'worse': image, 'gap': jnp.zeros(1), 'fields': fields}
    return made | {'extra': {**made.get('extra', {}), 'pairs': empty_pool(pairs, pool)}}

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    draw_key, take_key, loss_key = jax.random.split(key, 3)
    reference = {name: frozen[name] for name in names}
    extra: dict[str, Any] = {}
    if rollouts is None:
      better, worse = (d.encode(frozen, batch[name].astype(jnp.float32)) for name in ('image', REJECTED))
      rows = {'better': better, 'worse': worse, 'fields': conditioner.select(batch)}
      metrics = {}
    else:
      new, metrics = ranked(rollouts, d, conditioner, {**params, **reference}, frozen, batch, draw_key)
      extra = {'pairs': put(state.extra['pairs'], new)}
      rows = take(extra['pairs'], len(batch['image']), take_key)
    value, found = pair_loss(d, params, {**params, **reference}, frozen, rows, loss_key, times, beta, space)
    return value, Aux({**metrics, **found}, extra)

  phase = Phase('dpo', names if len(names) > 1 else names[0], loss)
  return objective._replace(init=init, phases=(phase,))


def pair_loss(
  d: Denoising,
  params: dict[str, Any],
  reference: dict[str, Any],
  frozen: Any,
  rows: dict[str, Any],
  key: Key[Array, ''],
  times: TimeSampler,
  beta: float,
  space: Parameterise,
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """Eq. 1 and its metrics."""
  time_key, noise_key, encode_key = jax.random.split(key, 3)
  better, worse, process = rows['better'], rows['worse'], d.process(params)
  size = len(better)
  t, noise = times(time_key, size), noise_like(better, noise_key)
  x0, eps_, t_ = jnp.concatenate([better, worse]), jnp.concatenate([noise, noise]), jnp.concatenate([t, t])
  x_t, judged = corrupt(process, x0, eps_, t_), space(process)
  perfect = judged.predict(judged.target(x0, eps_, t_), x_t, t_)

  def error(of: dict[str, Any]) -> Float[Array, '2 b']:
    cond, _ = d.condition(of, frozen, rows['fields'], jax.random.split(encode_key, size))
    both = jax.tree.map(lambda a: jnp.concatenate([a, a]), cond)
    return squared_error(judged, d.denoiser(of, frozen)(x_t, t_, both), perfect, t_).reshape(2, size)

  mine, theirs = error(params), jax.lax.stop_gradient(error(reference))
  win, lose = mine - theirs
  margin = -0.5 * beta * (win - lose)
  metrics = {'accuracy': jnp.mean(margin > 0), 'error': jnp.mean(mine), 'reference_error': jnp.mean(theirs)}
  return -jnp.mean(jax.nn.log_sigmoid(margin)), metrics


def ranked(
  rollouts: Rollouts,
  d: Denoising,
  conditioner: Conditioner,
  reference: dict[str, Any],
  frozen: Any,
  batch: Batch,
  key: Key[Array, ''],
) -> tuple[dict[str, Any], dict[str, Array]]:
  """The best and the worst of each group that the reference samples."""
  images, repeated, rewards = rollouts.draw(reference, frozen, batch, conditioner, key)
  x0 = d.encode(frozen, images)
  groups = x0.reshape(rollouts.prompts, rollouts.group, *x0.shape[1:])
  pick: Callable[[Array], Array] = lambda i: groups[jnp.arange(rollouts.prompts), i]  # noqa: E731
  first = jax.tree.map(lambda a: a[:: rollouts.group], conditioner.select(repeated))
  gap = rewards.max(1) - rewards.min(1)
  pairs = {'better': pick(rewards.argmax(1)), 'worse': pick(rewards.argmin(1)), 'gap': gap, 'fields': first}
  return pairs, {'reward': rewards.mean(), 'gap': gap.mean()}
