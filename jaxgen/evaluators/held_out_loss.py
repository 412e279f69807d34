"""The loss on held-out images at fixed noise and fixed times, each time apart.

The training loss is noisy because times are random, and its mean over times hides what happens: it may fall at high
noise while it rises, by overfitting, at low noise. Here image i has the noise of fold_in(key(seed), i) at every
evaluation, and

  (1)  L(t) = mean | v_hat - v |^2,   v = (alpha eps - sigma x0) / sqrt(alpha^2 + sigma^2)

v is of the size of the data at every time, for any process, so that the numbers compare over times.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import jax.sharding

from jaxgen.data.dataset import Dataset
from jaxgen.data.reader import Transform
from jaxgen.evaluators.base import Evaluator
from jaxgen.evaluators.likelihood import likelihood
from jaxgen.objectives.base import Denoising
from jaxgen.processes.process import Process, corrupt, expand, image_noise
from jaxgen.typing import Array

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def held_out_loss(
  denoising: Denoising,
  dataset: Dataset,
  *,
  mesh: jax.sharding.Mesh,
  every: int,
  batch_size: int,
  times: Sequence[float] = TIMES,
  num: int | None = 1024,
  cond: Sequence[str] = (),
  transform: Transform | None = None,
  seed: int = 0,
  name: str = 'held_out',
) -> Evaluator:
  """Eq. 1 at each time, as `NAME/loss_t0.10`, from the averaged parameters.

  Args:
    denoising: the objective's.
    dataset: images that the run does not train on; the training data shows overfitting beside it, under another name.
    mesh: mesh that a batch is sharded over.
    every: interval in steps.
    batch_size: images at a time.
    times: times in (0, 1).
    num: number of images, the dataset's first ones; None for all.
    cond: the fields of a record that are conditions of the network.
    transform: (record, rng) to record, as the training loader's: captions become tokens; record i has the random
      numbers of i at every evaluation.
    seed: seed of the noise.
    name: name of the numbers.

  Raises:
    ValueError: no times, or one outside of (0, 1).
  """
  if not times or not all(0 < t < 1 for t in times):
    raise ValueError(f'times are {tuple(times)}; wanted some between 0 and 1, such as {TIMES}')

  def measure(params, frozen, images, fields, keys) -> dict[str, Array]:
    process, denoise = denoising.process(params), denoising.denoiser(params, frozen)
    x0 = denoising.encode(frozen, images).astype(jnp.float32)
    eps = image_noise(keys, x0.shape[1:])
    cond, _ = denoising.condition(params, frozen, fields, keys)
    losses = {}
    for time in times:
      t = jnp.full(len(x0), time, jnp.float32)
      found = denoise(corrupt(process, x0, eps, t), t, cond)
      error = _velocity(process, found.x0, found.eps, t) - _velocity(process, x0, eps, t)
      losses[f'{name}/loss_t{time:.2f}'] = jnp.mean(error**2, axis=tuple(range(1, error.ndim)))  # Eq. 1
    return losses

  return likelihood(
    measure,
    dataset,
    mesh=mesh,
    every=every,
    batch_size=batch_size,
    num=num,
    cond=cond,
    transform=transform,
    seed=seed,
    name=name,
  )


def _velocity(process: Process, x0: Array, eps: Array, t: Array) -> Array:
  alpha, sigma = (expand(values, x0) for values in (process.alpha(t), process.sigma(t)))
  return (alpha * eps - sigma * x0) / jnp.sqrt(alpha**2 + sigma**2)
