"""Latent consistency models (LCM, Luo et al. 2023): a trained model of text learns to make an image in a few steps.

f is the network's x0, with the boundary of parameterisation.py, Eq. 11; on a grid of N uniform times, s = t - 1/N,

  (1)  x_s = alpha_s x0~ + sigma_s eps~,   (x0~, eps~) of the guided teacher at x_t        one step of DDIM
  (2)  L   = mean sqrt((f(x_t, t) - sg f(x_s, s))^2 + c^2) - c,   c = 0.001

so guidance is learned and costs nothing later. The teacher and the encoders are frozen (teacher.py). LCM-LoRA (Luo et
al. 2023b) is adapted(latent_consistency(...), lora(...)): its correction alone is trained, over the frozen teacher.

Differs from Luo et al.: one scale of guidance, no range that the network is conditioned on; the target is the network
itself, as in their code of LCM-LoRA; Eq. 2 is written for any process.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import Aux, Objective, Phase, sampled
from jaxgen.objectives.few_step.teacher import condition_of, init_of_student, taught, teacher_of
from jaxgen.objectives.network import NET
from jaxgen.processes import times as time_samplers
from jaxgen.processes.process import Denoiser, Prediction, Process, corrupt, expand, noise_like
from jaxgen.samplers import grids
from jaxgen.samplers.consistency import consistency
from jaxgen.samplers.sampler import Guide, Sampler, Without
from jaxgen.typing import Array, Batch, Cond, Float, Key

_HUBER = 1e-3  # c of Eq. 2


def latent_consistency(
  objective: Objective,
  *,
  grid: int = 50,
  times: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25),
  guide_teacher: Sequence[Guide] = (),
  guide: Sequence[Guide] = (),
  data_std: float = 0.5,
  scale: float = 10.0,
) -> Objective:
  """Trains a student of a diffusion objective's model by Eq. 2.

  Args:
    objective: the teacher's.
    grid: N.
    times: times at which `sample` calls f, falling from 1; one for each step.
    guide_teacher: wrappers of the teacher, such as `(classifier_free(4.0), clip())`.
    guide: wrappers of the student when sampling, such as `(clip(),)`.
    data_std, scale: d and T of the boundary.
  """
  check_times(times)
  d = taught(objective)
  bounded = bounded_by(data_std, scale)
  sampler = Sampler(consistency, np.asarray([*times, 0], np.float32))
  student = d._replace(
    sampler=sampler, guide=(bounded, *guide), walk=Sampler(consistency, grids.fine(sampler.times)), inverse=None
  )

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    time_key, noise_key, encode_key = jax.random.split(key, 3)
    process = d.process(params)
    x0 = d.encode(frozen, batch['image'].astype(jnp.float32))
    t = time_samplers.discrete(grid)(time_key, len(x0))
    s = jnp.maximum(t - 1 / grid, 0.0)
    x_t = corrupt(process, x0, noise_like(x0, noise_key), t)
    cond, without = condition_of(d, frozen, batch, encode_key)
    target = teacher_of(d, frozen, without, guide_teacher)(x_t, t, cond)
    x_s = jax.lax.stop_gradient(corrupt(process, target.x0, target.eps, s))  # Eq. 1
    f = bounded(d.denoiser(params, frozen), process, without)
    now, earlier = f(x_t, t, cond).x0, jax.lax.stop_gradient(f(x_s, s, cond).x0)
    value = jnp.mean(jnp.sqrt((now - earlier) ** 2 + _HUBER**2) - _HUBER)  # Eq. 2
    return value, Aux({'from_teacher': jnp.mean((now - target.x0) ** 2)})

  return objective._replace(
    init=init_of_student(objective),
    phases=(Phase('latent_consistency', NET, loss),),
    sample=sampled(student),
    denoising=student,
  )


def bounded_by(data_std: float, scale: float) -> Guide:
  """Gives a denoiser the boundary of consistency models: f(x, 0) = x."""

  def wrap(denoise: Denoiser, process: Process, without: Without) -> Denoiser:
    def bounded(x_t: Array, t: Array, cond: Cond) -> Prediction:
      time = expand(scale * process.network_time(t), x_t)
      norm = jnp.sqrt(time**2 + data_std**2)
      x0 = (data_std / norm) ** 2 * x_t + time / norm * denoise(x_t, t, cond).x0
      a, s = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
      return Prediction(x0, (x_t - a * x0) / jnp.maximum(s, 1e-5))

    return bounded

  return wrap


def check_times(times: Sequence[float]) -> None:
  """Raises ValueError for times that do not start at 1 and fall."""
  if not times or times[0] != 1 or (np.diff((*times, 0.0)) >= 0).any():
    raise ValueError(f'times are {tuple(times)}; they must start at 1 and fall, without reaching 0')
