"""FID in the loop: images drawn from the averaged parameters against a data set's statistics.

Every process ends with all features, so statistics are the same numbers on each, whatever the number of devices; image
i depends on (params, cond_i, seed, i) alone, so the batch size does not matter either.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.statistics import FeatureStatistics, Moments
from jaxgen.train_state import sampling_params

FULL = 50_000  # samples of a FID that may be called so


def fid_name(num_samples: int) -> str:
  """'fid' of 50,000 samples or more, else 'fid_2k' or 'fid_500': FIDs of different numbers do not compare."""
  if num_samples >= FULL:
    return 'fid'
  return f'fid_{num_samples // 1000}k' if num_samples % 1000 == 0 else f'fid_{num_samples}'


def fid(
  generate: Generate,
  *,
  extract: Callable[[Any], np.ndarray],
  reference: Callable[[], Moments],
  cond: Mapping[str, np.ndarray],
  num_samples: int,
  every: int,
  protocol: Mapping[str, Any],
  seed: int = 0,
) -> Evaluator:
  """Fréchet Inception Distance, written with its protocol to protocols.json.

  Args:
    generate: from `make_generate`.
    extract: float images, sharded over the mesh, to features on every process.
    reference: statistics of the data; called once, at the first evaluation.
    cond: conditioning of the samples, as host arrays of `num_samples` rows: the labels' distribution.
    num_samples: 50,000 for a number that compares with the literature.
    every: interval in steps.
    protocol: how the number comes about, for people: weights, resize, reference, sampler, guidance.
    seed: of the noise.
  """
  if num_samples < 2:
    raise ValueError(f'FID of {num_samples} samples is not defined; set fid.num_samples to 50000, or to at least 2')
  name = fid_name(num_samples)
  kept: list[Moments] = []

  def run(context: Context) -> dict[str, float]:
    if not kept:
      kept.append(reference())
      context.writer.protocol(name, dict(protocol) | {'samples': num_samples, 'seed': seed, 'reference': kept[0].n})
    statistics = FeatureStatistics()
    batches = generate(sampling_params(context.state), context.frozen, cond, seed=seed, num=num_samples)
    for images, count in batches:
      statistics.update(extract(images)[:count])
      context.pause()
    return {name: frechet_distance(statistics.finalize(), kept[0])}

  return Evaluator(name, every, run)
