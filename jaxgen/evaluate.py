"""Evaluates a trained run: by the evaluators of its config, or by any metrics of metrics/suite.py."""

import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxgen import distributed, sharding
from jaxgen import writer as writers
from jaxgen.evaluators import quality
from jaxgen.evaluators.base import Context
from jaxgen.evaluators.generate import make_generate
from jaxgen.files import write_whole
from jaxgen.metrics import suite
from jaxgen.metrics.evaluate import evaluate as metrics_of
from jaxgen.metrics.evaluate import read_reference
from jaxgen.metrics.folder import Images
from jaxgen.metrics.shards import Shards
from jaxgen.models import inception
from jaxgen.sample import Trained


def evaluate(
  trained: Trained, workdir: str | os.PathLike, *, only: Collection[str] = ()
) -> dict[str, dict[str, float]]:
  """Runs the evaluators of the stage that a run is in.

  Args:
    trained: the result of `sample.restore`.
    workdir: where grids, metrics.jsonl and protocols.json go; not the run's own folder, which holds what it
      measured while it trained.
    only: names of evaluators; all by default.

  Returns:
    The scalars of each evaluator by its name.

  Raises:
    ValueError: there is no evaluator of that name, or `workdir` is the folder of a run.
    FileNotFoundError: the weights that one needs are missing.
  """
  evaluators = {evaluator.name: evaluator for evaluator in trained.stage.evaluators}
  unknown = sorted(set(only) - evaluators.keys())
  if unknown:
    raise ValueError(f'this run has no evaluator named {unknown[0]!r}; it has {", ".join(evaluators) or "none"}')
  folder, results = epath.Path(workdir), {}
  if (folder / 'checkpoints').exists():
    raise ValueError(f'{folder} is the folder of a run, whose records would be lost; give another (--out)')
  chosen = [evaluators[name] for name in only or evaluators]
  for evaluator in chosen:
    evaluator.check()
  with writers.Writer(folder, stream=sys.stderr) if distributed.is_first() else writers.silent() as writer:
    for evaluator in chosen:
      distributed.ready(f'{evaluator.name} at step {trained.step}')
      values = evaluator.run(Context(trained.step, trained.state, trained.frozen, writer, folder))
      writer.scalars(trained.step, values)
      results[evaluator.name] = dict(values)
  return results


def compare(
  images: pathlib.Path | Images,
  reference: pathlib.Path | Images | None,
  *,
  metrics: Sequence[str],
  batch_size: int | None = None,
  resize: inception.Resize = inception.tf1_bilinear,
  report: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
  """Any metrics of images against others, and their `protocol`; see `metrics.evaluate.evaluate`.

  Args:
    batch_size: images at a time; 16 for each device by default.
    resize: resizes images to Inception's 299x299.
  """
  mesh = sharding.make_mesh()
  batch_size = 16 * jax.device_count() if batch_size is None else batch_size
  sharding.check_batch_size(batch_size, mesh)
  networks = quality.load_networks(metrics, batch_size=batch_size, mesh=mesh, resize=resize)
  found = metrics_of(
    images,
    reference,
    metrics=metrics,
    extract=networks.extract,
    batch_size=batch_size,
    logits=networks.logits,
    report=report,
  )
  return found.metrics | {'protocol': found.protocol | networks.protocol}


class Samples(NamedTuple):
  """Which samples are measured.

  Attributes:
    num: number of samples; 50,000 for numbers that compare with the literature.
    seed: seed of the noise.
    batch_size: images at a time.
    cond: their conditioning, as host arrays of `num` rows.
    save: 'png' or 'npz' keeps them in the folder, the second as ADM's evaluation reads samples; None does not.
  """

  num: int
  seed: int
  batch_size: int
  cond: Mapping[str, np.ndarray]
  save: str | None = None


def measure(
  trained: Trained,
  folder: pathlib.Path,
  samples: Samples,
  *,
  metrics: Sequence[str],
  about: Mapping[str, Any],
  reference: pathlib.Path | None = None,
  report: Callable[[str], None] = lambda message: None,
) -> dict[str, Any] | None:
  """Any metrics of a run, from one set of samples. A killed call continues from the files in `folder`.

  Args:
    trained: the parameters that `sample.restore` returns.
    folder: folder of features, samples and result.json.
    samples: which samples to evaluate.
    metrics: names of `suite.METRICS`.
    about: the run, its step, average and config: all that the samples depend on.
    reference: a folder of images, a .zip, or an .npz; the run's training data by default.
    report: gets a line of progress now and then.

  Returns:
    The numbers by name, and their `protocol`; None on all processes but the first.

  Raises:
    FileNotFoundError, ValueError: weights or a reference that is missing, or a metric that is not defined.
  """
  suite.check_names(metrics)
  mesh, num = trained.stage.mesh, samples.num
  networks = quality.load_networks(metrics, batch_size=samples.batch_size, mesh=mesh)
  digest = hashlib.sha256()
  for name in sorted(samples.cond):
    digest.update(f'{name} {np.asarray(samples.cond[name]).tobytes().hex()}'.encode())
  key = dict(about) | {'seed': samples.seed, 'cond': digest.hexdigest(), **networks.protocol}
  first = distributed.is_first()
  shards = Shards(folder / 'features' if first else None, about=key | {'needs': sorted(suite.needs(metrics))})
  array = folder / 'samples.npy'
  keep = {None: None, 'png': quality.keep_png, 'npz': lambda _: quality.keep_npy(array, num)}[samples.save]
  found = quality.collect(
    make_generate(trained.stage.objective.sample, mesh=mesh, batch_size=samples.batch_size),
    trained.params,
    trained.frozen,
    samples.cond,
    seed=samples.seed,
    num=num,
    mesh=mesh,
    extract=networks.extract,
    shards=shards,
    keep=None if keep is None else keep(folder / 'samples') if first else lambda number, images: None,
    progress=lambda done: report(f'{min(done, num):,} of {num:,} samples'),
  )
  if samples.save == 'npz' and array.exists() and first:
    quality.npz_of(array, folder / 'samples.npz')
  compared, how = _reference(trained, metrics, networks, samples.batch_size, reference, report)
  if not first:
    return None
  values, protocol = suite.measure(metrics, found, compared, logits=networks.logits)
  result = values | {
    'protocol': {'samples': num, 'seed': samples.seed} | how | protocol | networks.protocol | dict(about)
  }
  write_whole(folder / 'result.json', json.dumps(result, indent=2, default=str) + '\n')
  return result


def _reference(
  trained: Trained,
  metrics: Sequence[str],
  networks: quality.Networks,
  batch_size: int,
  path: pathlib.Path | None,
  report: Callable[[str], None],
) -> tuple[suite.Reference, dict[str, Any]]:
  """The reference of the samples, and its name for the protocol."""
  if path is not None:
    options = {'metrics': metrics, 'extract': networks.extract, 'batch_size': batch_size, 'report': report}
    found, count = read_reference(path, **options)
    return found, {'reference': str(path), 'reference_samples': count}
  if all(suite.METRICS[name].of_reference == 'nothing' for name in metrics):
    return suite.Reference({}, {}), {}
  dataset = trained.stage.data.dataset
  found = quality.dataset_reference(
    dataset,
    extract=networks.extract,
    about=networks.protocol | {'needs': sorted(suite.needs(metrics))},
    batch_size=batch_size,
    mesh=trained.stage.mesh,
    progress=lambda done: report(f'{done:,} of {dataset.num_examples:,} images of {dataset.name}, once'),
  )
  how = {'reference': f'{dataset.name} ({dataset.split})', 'reference_fingerprint': dataset.fingerprint}
  return found, how | {'reference_samples': dataset.num_examples}
