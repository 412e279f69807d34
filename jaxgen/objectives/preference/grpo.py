"""Flow-GRPO: policy gradients on the steps of a stochastic sampler, with each image measured against its group.

A step of the sampler (samplers/euler_maruyama.py, Eq. 2, with a^2 times its noise v) is a Gaussian policy,

  (1)  x_s = m(x_t) + sqrt(v) z,   log p = -mean (x_s - m)^2 / (2 v) + const,   the mean over the image's values

With the advantage A of the image (rollouts.py, Eq. 1) and rho = p / p_old, at some steps of each trajectory,

  (2)  L = -mean min(rho A, clip(rho, 1 - e, 1 + e) A) + kl mean (m - m_ref)^2 / (2 v)

Liu et al. 2025, "Flow-GRPO: Training Flow Matching Models via Online RL", for flows; Black et al. 2023, DDPO, is the
same for diffusion. The denoiser of the policy is the guided one, in sampling and in learning. The policy that samples
is an average of the model, or the model itself, whose ratio is 1: then the gradient of Eq. 2 is the plain one.

Differs from Liu et al.: a step of training samples its images and makes one update on `learned` steps of the sampler
chosen at random, not on all of them; the last step, to t = 0, adds no noise and is not learned from.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import (
  Aux,
  Denoising,
  Objective,
  Phase,
  decoded,
  denoising_of,
  guided_denoiser,
  trained_names,
)
from jaxgen.objectives.preference.rewards import Reward
from jaxgen.objectives.preference.rollouts import Rollouts, advantages
from jaxgen.processes import posterior
from jaxgen.processes.process import Process, image_noise
from jaxgen.samplers import exponential
from jaxgen.samplers.noise import step_noise
from jaxgen.typing import Array, Batch, Cond, Float, Key


class Step(NamedTuple):
  """Eq. 1 between two times of a grid, each a number: m = x + of_x0 x0 + of_eps eps."""

  t: Array
  of_x0: Array
  of_eps: Array
  v: Array


def grpo(
  objective: Objective,
  *,
  times: Float[np.ndarray, ' n'],
  reward: Reward,
  prompts: int,
  group: int,
  learned: int = 2,
  noise: float = 1.0,
  clip: float = 1e-3,
  kl: float = 0.0,
  old: Mapping[str, str] | None = None,
) -> Objective:
  """Trains the networks of a diffusion objective by Eq. 2.

  Args:
    objective: one with a denoiser; its guidance is a part of the policy.
    times: times of the sampler, falling from 1 to 0.
    reward: judges the images.
    prompts: number of prompts of a step, the first ones of its batch.
    group: images of each prompt.
    learned: number of the sampler's steps that are learned from, the same for all images.
    noise: a.
    clip: e; it is small as log p is a mean over the image.
    kl: weight of the distance from the reference, which is in `frozen` under the names of the parameters; 0 needs none.
    old: names of the averages that sample, by the keys of params; None for the model itself.
  """
  d, names = denoising_of(objective), trained_names(objective)
  times = np.asarray(times, np.float32)
  rollouts = Rollouts(objective.sample, reward, prompts, group)
  rollouts.check()

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    noise_key, pick_key, encode_key = jax.random.split(key, 3)
    process, repeated = d.process(params), rollouts.repeated(batch)
    fields = objective.conditioner.select(repeated)
    policy = {**params, **{name: state.ema[old[name]] for name in names}} if old else params
    encode_keys, draw_keys = (jax.random.split(k, prompts * group) for k in (encode_key, noise_key))
    steps = steps_of(process, times, noise)

    def mean_of(of: dict[str, Any], x: Array, step: Step) -> Array:
      cond, without = d.condition(of, frozen, fields, encode_keys)
      return mean(guided_denoiser(d, of, frozen, without), x, step, cond)

    xs, zs, x0 = trajectory(d, policy, frozen, fields, encode_keys, steps, draw_keys)
    images = decoded(d, frozen, x0)
    rewards = reward(frozen, images, repeated).reshape(prompts, group)
    xs, zs, rewards = jax.tree.map(jax.lax.stop_gradient, (xs, zs, rewards))
    advantage = advantages(rewards, over_all=True).reshape(-1)
    share = (steps.v > 0) / jnp.sum(steps.v > 0)
    picked = jax.random.choice(pick_key, len(share), (learned,), replace=False, p=share)
    total, metrics = jnp.float32(0), {'reward': rewards.mean(), 'reward_std': rewards.std(axis=1).mean()}
    for i in picked:
      step, x, z = jax.tree.map(lambda a, i=i: a[i], (steps, xs, zs))
      m = mean_of(params, x, step)
      m_old = jax.lax.stop_gradient(mean_of(policy, x, step) if old else m)
      value, found = clipped(m, m_old, z, step.v, advantage, clip)
      if kl:
        m_ref = jax.lax.stop_gradient(mean_of({**params, **{name: frozen[name] for name in names}}, x, step))
        found['kl'] = jnp.mean((m - m_ref) ** 2) / (2 * step.v)
        value += kl * found['kl']
      total += value / learned
      metrics = {**metrics, **{name: metrics.get(name, 0.0) + each / learned for name, each in found.items()}}
    return total, Aux(metrics)

  return objective._replace(phases=(Phase('grpo', names if len(names) > 1 else names[0], loss),))


def clipped(
  m: Float[Array, 'b ...'],
  m_old: Float[Array, 'b ...'],
  z: Float[Array, 'b ...'],
  v: Float[Array, ''],
  advantage: Float[Array, ' b'],
  clip: float,
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The first term of Eq. 2 at one step, for x_s = m_old + sqrt(v) z."""
  axes = tuple(range(1, m.ndim))
  log_ratio = -jnp.mean((m_old + jnp.sqrt(v) * z - m) ** 2, axis=axes) / (2 * v) + jnp.mean(z**2, axis=axes) / 2
  ratio = jnp.exp(log_ratio)
  bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
  value = -jnp.mean(jnp.minimum(ratio * advantage, bounded * advantage))
  return value, {'clipped': jnp.mean(jnp.abs(ratio - 1) > clip)}


def steps_of(process: Process, times: Float[np.ndarray, ' n'], noise: float) -> Step:
  """All steps of a grid; one whose noise would be unbounded, and the last, have none."""
  t, s = jnp.asarray(times[:-1]), jnp.asarray(times[1:])
  alpha, sigma = process.alpha(jnp.asarray(times)), process.sigma(jnp.asarray(times))
  is_regular = exponential.regular(exponential.half_log_snr(process, jnp.asarray(times))) & (s > 0)
  v = jnp.where(is_regular, noise**2 * posterior.large_variance(process, t, s), 0.0)
  return Step(t, alpha[1:] - alpha[:-1], sigma[1:] - sigma[:-1] - v / (2 * sigma[:-1]), v)


def mean(denoise: Any, x: Float[Array, 'b ...'], step: Step, cond: Cond) -> Float[Array, 'b ...']:
  """m of Eq. 1."""
  prediction = denoise(x, jnp.full(x.shape[:1], step.t), cond)
  return x + step.of_x0 * prediction.x0 + step.of_eps * prediction.eps


def trajectory(
  d: Denoising,
  params: dict[str, Any],
  frozen: Any,
  fields: dict[str, Array],
  encode_keys: Key[Array, ' b'],
  steps: Step,
  keys: Key[Array, ' b'],
) -> tuple[Float[Array, 'n b ...'], Float[Array, 'n b ...'], Float[Array, 'b ...']]:
  """x_t and z of every step of Eq. 1, and where they end."""
  process = d.process(params)
  cond, without = d.condition(params, frozen, fields, encode_keys)
  denoise = guided_denoiser(d, params, frozen, without)
  first, later = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  x = (process.sigma(jnp.float32(1)) if d.noise_std is None else d.noise_std) * image_noise(first, d.shape)

  def body(x: Array, at: tuple[Array, Step]) -> tuple[Array, tuple[Array, Array]]:
    i, step = at
    z = step_noise(later, i, x)
    return mean(denoise, x, step, cond) + jnp.sqrt(step.v) * z, (x, z)

  x0, (xs, zs) = jax.lax.scan(body, x, (jnp.arange(len(steps.t)), steps))
  return xs, zs, x0
