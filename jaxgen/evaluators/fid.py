"""FID during training: images of the averaged parameters against a dataset's statistics.

Every process ends with all features, so statistics are the same numbers on each, whatever the number of devices; image
i depends on (params, cond_i, seed, i) alone, so the batch size does not matter either.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import distributed, sharding
from jaxgen.data.dataset import Dataset
from jaxgen.data.loader import epoch
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.features import Extract, feature_extractor
from jaxgen.evaluators.generate import Generate
from jaxgen.evaluators.kept_statistics import KeptStatistics, digest_of, identity
from jaxgen.metrics import reference
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.statistics import Moments
from jaxgen.pretrained import inception
from jaxgen.train_state import sampling_params

FULL = 50_000  # samples of a FID that may be called 'fid'


def fid_name(num_samples: int) -> str:
  """'fid' of 50,000 samples or more, else 'fid_2k' or 'fid_500': FIDs of different numbers do not compare."""
  if num_samples >= FULL:
    return 'fid'
  return f'fid_{num_samples // 1000}k' if num_samples % 1000 == 0 else f'fid_{num_samples}'


def fid(
  generate: Generate,
  dataset: Dataset,
  *,
  mesh: jax.sharding.Mesh,
  cond: Mapping[str, np.ndarray],
  num_samples: int,
  every: int,
  batch_size: int,
  protocol: Mapping[str, Any],
  seed: int = 0,
  prefix: str = '',
) -> Evaluator:
  """Fréchet Inception Distance to a dataset, written with its protocol to protocols.json.

  Args:
    generate: the function that `make_generate` returns.
    dataset: the reference; its statistics are computed once and kept.
    mesh: the mesh `generate` was made for.
    cond: conditioning of the samples, as host arrays of `num_samples` rows: the labels' distribution.
    num_samples: 50,000 for a number that compares with the literature.
    every: interval in steps.
    batch_size: reference images at a time.
    protocol: further facts that the number depends on: labels, sampler, guidance.
    seed: seed of the noise.
    prefix: prefix of the name: 'r' for reconstructions of an autoencoder.

  Raises:
    ValueError: too few samples, or reference images at a time that do not divide over the mesh.

  Its `check` raises FileNotFoundError where there are no Inception weights, and says how to get them.
  """
  if num_samples < 2:
    raise ValueError(f'FID of {num_samples} samples is not defined; set fid.num_samples to 50000, or to at least 2')
  sharding.check_batch_size(batch_size, mesh)
  load = functools.cache(inception.load)
  name, given = prefix + fid_name(num_samples), functools.cache(lambda: digest_of(cond))
  kept: list[Moments | None] = []
  extractors: list[Extract] = []

  def prepare(context: Context) -> None:
    network = load()
    place, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    extractors.append(
      feature_extractor(network.params, batch_size=batch_size, batch_sharding=place, replicated=everywhere)
    )
    key = {'dataset': dataset.fingerprint, 'split': dataset.split, 'resize': 'tf1', 'weights': network.hash}
    moments = _on_first(key, lambda path: _moments(dataset, _rgb(extractors[0]), batch_size, mesh, context, path, key))
    kept.append(moments)
    if moments is None:
      return
    how = {
      'reference': f'{moments.n} images of {dataset.name} ({dataset.split})',
      'reference_fingerprint': dataset.fingerprint,
      'samples': num_samples,
      'seed': seed,
      'network': 'Inception 2015-12-05, pool3, 2048 features',
      'network_hash': network.hash,
      'resize': 'TensorFlow 1 bilinear, from 8-bit images',
    }
    context.writer.protocol(name, how | dict(protocol))

  def run(context: Context) -> dict[str, float]:
    if not kept:
      prepare(context)
    extract, params = _rgb(extractors[0]), sampling_params(context.state)
    about = {'step': context.step, 'params': identity(params), 'seed': seed, 'num': num_samples, 'cond': given()}
    path = context.workdir / 'evaluation' / f'{name}.partial.npz' if distributed.is_first() else None
    made = KeptStatistics(path, about=about | {'network': load().hash})
    first = distributed.agree(made.done)
    for images, count in generate(params, context.frozen, cond, seed=seed, num=num_samples, first=first):
      made.update(extract(images)[:count], images=count)
      context.progress(name, made.done, num_samples)
    moments = kept[0]
    if moments is None:
      return {}
    made.write()
    values = {name: frechet_distance(made.statistics.finalize(), moments)}
    made.remove()
    return values

  return Evaluator(name, every, run, check=load)


def _on_first(key: Mapping[str, str], compute: Callable[[Path], Moments | None]) -> Moments | None:
  """Kept or computed statistics, on the first process only; all processes take part in computing them.

  Args:
    key: all they depend on.
    compute: gets the path at which they will be kept.
  """
  path, first = reference.cached_path(key), distributed.is_first()
  if distributed.agree(int(path.exists())):
    return reference.read(path) if first else None
  moments = compute(path)  # on every process, also where another run has left the file
  if moments is not None:
    reference.write(path, moments, key)
  return moments


def _moments(
  dataset: Dataset,
  extract: Callable[[Any], np.ndarray],
  batch_size: int,
  mesh: jax.sharding.Mesh,
  context: Context,
  path: Path,
  key: Mapping[str, str],
) -> Moments | None:
  """Statistics of every record of the dataset once, on the first process; a killed run continues with them."""
  partial = path.with_suffix('.partial.npz') if distributed.is_first() else None
  made = KeptStatistics(partial, about=dict(key) | {'batch_size': batch_size})
  first = distributed.agree(made.done) // batch_size
  with epoch(dataset, batch_size=batch_size, sharding=sharding.batch_sharding(mesh), first=first) as batches:
    for batch in batches:
      mask = np.asarray(jax.device_put(batch['mask'], sharding.replicated(mesh)))
      made.update(extract(batch['image'])[mask], images=batch_size)
      context.progress(f'features of {dataset.name}, once', made.done, dataset.num_examples)
  if not distributed.is_first():
    return None
  moments = made.statistics.finalize()
  made.remove()
  return moments


def _rgb(extract: Extract) -> Callable[[Any], np.ndarray]:
  """Gray images as three equal channels."""
  return lambda images: extract(jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images)
