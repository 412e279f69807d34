"""Likelihood of held-out images while training: generation/likelihood.py or objectives/diffusion/vlb.py."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import sharding
from jaxgen.data.dataset import Dataset
from jaxgen.data.loader import epoch
from jaxgen.data.reader import Transform
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.train_state import sampling_params
from jaxgen.typing import Array, Cond


def likelihood(
  measure: Callable[[Any, Any, Array, Cond, Array], dict[str, Array]],
  dataset: Dataset,
  *,
  mesh: jax.sharding.Mesh,
  every: int,
  batch_size: int,
  num: int | None = None,
  cond: Sequence[str] = (),
  transform: Transform | None = None,
  seed: int = 0,
  name: str = 'likelihood',
) -> Evaluator:
  """Means over a dataset's images, from the averaged parameters.

  Args:
    measure: `(params, frozen, images, cond, keys) -> {name: float32 [b]}`, such as bits per dimension.
    dataset: best one that the run does not train on.
    mesh: mesh that a batch is sharded over.
    every: interval in steps.
    batch_size: images at a time.
    num: number of images, the dataset's first ones; None for all.
    cond: the fields of a record that are conditions of the network.
    transform: (record, rng) to record, as a loader's; record i has the random numbers of i at every evaluation.
    seed: seed of the noise; image i has the key fold_in(key(seed), i) whatever the batch size.
    name: name of its clock.
  """
  sharding.check_batch_size(batch_size, mesh)
  place, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  num = dataset.num_examples if num is None else min(num, dataset.num_examples)

  @jax.jit
  def totals(params, frozen, batch, first):
    index = first + jnp.arange(batch_size)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(index)
    keys = jax.lax.with_sharding_constraint(keys, place)
    found = measure(params, frozen, batch['image'], {field: batch[field] for field in cond}, keys)
    meant = batch['mask'] & (index < num)
    sums = {key: jnp.where(meant, value, 0.0).sum() for key, value in found.items()}
    return jax.lax.with_sharding_constraint((sums, meant.sum()), everywhere)

  def run(context: Context) -> dict[str, float]:
    params, sums, count = sampling_params(context.state), {}, 0
    with epoch(dataset, batch_size=batch_size, sharding=place, transform=transform) as batches:
      for first, batch in zip(range(0, num, batch_size), batches, strict=False):
        part, meant = totals(params, context.frozen, batch, np.int32(first))
        sums = {key: sums.get(key, 0.0) + float(value) for key, value in part.items()}
        count += int(meant)
        context.progress(name, count, num)
    if not count:
      raise ValueError(f'no image of {dataset.name} ({dataset.split}) can be read, so it has no likelihood')
    return {key: value / count for key, value in sums.items()}

  return Evaluator(name, every, run)
