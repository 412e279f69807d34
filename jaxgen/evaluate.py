"""Evaluates a trained run: by the evaluators of its config, or by any metrics of metrics/suite.py."""

import functools
import json
import os
import pathlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxgen import distributed, sharding
from jaxgen import writer as writers
from jaxgen.data.sources import source
from jaxgen.evaluators import quality
from jaxgen.evaluators.base import Context
from jaxgen.evaluators.generate import GenerateFrom, make_generate, to_host
from jaxgen.evaluators.kept_statistics import digest_of
from jaxgen.files import write_whole
from jaxgen.image_grid import save_png
from jaxgen.metrics import dialects, paired, suite
from jaxgen.metrics.evaluate import Evaluation, read_reference
from jaxgen.metrics.evaluate import evaluate as metrics_of
from jaxgen.metrics.folder import Images, open_images
from jaxgen.metrics.memorisation import memorisation
from jaxgen.metrics.shards import Shards
from jaxgen.models import inception
from jaxgen.sample import Trained
from jaxgen.typing import Report

_DATASET = 'dataset:'  # begins a reference that is a dataset, as `--config.dataset` names it


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
  folders: Mapping[str, os.PathLike] = {},
  in_dialects: bool = False,
  against: pathlib.Path | Images | None = None,
  report: Report = lambda message: None,
) -> dict[str, Any]:
  """Any metrics of images against others, and their `protocol`; see `metrics.evaluate.evaluate`.

  Args:
    images: the generated images.
    reference: the real images.
    metrics: names of `suite.METRICS`.
    batch_size: images at a time; 16 for each device by default.
    resize: resizes images to Inception's 299x299.
    folders: folders of `encoders.NETWORKS` in place of the published ones.
    in_dialects: with `dialects`, what other programs would report (metrics/dialects.py).
    against: generated images of another model, of which the i-th by name is the pair of the i-th; with `paired`
      (metrics/paired.py).
    report: gets a line of progress now and then.
  """
  mesh = sharding.make_mesh()
  batch_size = 16 * jax.device_count() if batch_size is None else batch_size
  sharding.check_batch_size(batch_size, mesh)
  networks = quality.load_networks(
    metrics, batch_size=batch_size, mesh=mesh, resize=resize, folders=folders, in_dialects=in_dialects
  )
  measured = functools.partial(
    metrics_of,
    metrics=metrics,
    extract=networks.extract,
    batch_size=batch_size,
    logits=networks.logits,
    texts=networks.texts,
    report=report,
  )
  found = measured(images, reference)
  copies = {'copies': _copies(found, images, reference)} if 'memorisation' in metrics else {}
  more = copies | _more(metrics, found.samples, found.reference, networks, in_dialects)
  if against is not None:
    other = measured(against, reference)
    more |= _paired(metrics, found.samples, other.samples, found.reference, networks)
  return found.metrics | more | {'protocol': found.protocol | networks.protocol}


def _copies(found: Evaluation, images: pathlib.Path | Images, reference: Any) -> list[dict[str, Any]]:
  """The samples that are most like copies, each with the name of the training image nearest to it."""
  names, real = (it.names if isinstance(it, Images) else open_images(it).names for it in (images, reference))
  copies = memorisation(found.reference.features['pool'], found.samples['pool'])
  return [
    {'sample': names[i], 'nearest': real[int(copies.nearest[i])], 'ratio': float(copies.ratios[i])}
    for i in map(int, np.argsort(copies.ratios)[: quality.PAIRS])
  ]


def _more(
  metrics: Sequence[str],
  samples: suite.Features,
  reference: suite.Reference,
  networks: quality.Networks,
  in_dialects: bool,
) -> dict[str, Any]:
  if not in_dialects:
    return {}
  return {'dialects': dialects.measure(metrics, samples, reference.features, logits=networks.logits)}


def _paired(
  metrics: Sequence[str],
  first: suite.Features,
  second: suite.Features,
  reference: suite.Reference,
  networks: quality.Networks,
) -> dict[str, Any]:
  found = paired.compare(metrics, first, second, reference, logits=networks.logits)
  return {'paired': {name: difference._asdict() for name, difference in found.items()}}


class Samples(NamedTuple):
  """Which samples are measured.

  Attributes:
    num: number of samples; 50,000 for numbers that compare with the literature.
    seed: seed of the noise.
    batch_size: images at a time.
    cond: their conditioning, as host arrays of `num` rows.
    save: 'png' or 'npz' keeps them in the folder, the second as ADM's evaluation reads samples; None does not.
    texts: what the samples show in words, which they take in turn; for the CLIP score.
  """

  num: int
  seed: int
  batch_size: int
  cond: Mapping[str, np.ndarray]
  save: str | None = None
  texts: Sequence[str] = ()


class Result(NamedTuple):
  """What was measured of a run.

  Attributes:
    values: numbers by name, perhaps `dialects`, and their `protocol`.
    samples, reference: the features that they are of.
    networks: the feature networks.
  """

  values: dict[str, Any]
  samples: suite.Features
  reference: suite.Reference
  networks: quality.Networks


def measure(
  trained: Trained,
  folder: pathlib.Path,
  samples: Samples,
  *,
  metrics: Sequence[str],
  about: Mapping[str, Any],
  reference: pathlib.Path | None = None,
  folders: Mapping[str, os.PathLike] = {},
  in_dialects: bool = False,
  report: Report = lambda message: None,
) -> Result | None:
  """Any metrics of a run, from one set of samples. A killed call continues from the files in `folder`.

  Args:
    trained: the parameters that `sample.restore` returns.
    folder: folder of features, samples and result.json.
    samples: which samples to evaluate.
    metrics: names of `suite.METRICS`.
    about: the run, its step, average and config: all that the samples depend on.
    reference: a folder of images, a .zip, .tar files, or an .npz, or `dataset:NAME`; the training data by default.
    folders: folders of `encoders.NETWORKS` in place of the published ones.
    in_dialects: with `dialects`, what other programs would report (metrics/dialects.py).
    report: gets a line of progress now and then.

  Returns:
    None on all processes but the first.

  Raises:
    FileNotFoundError, ValueError: weights or a reference that is missing, or a metric that is not defined.
  """
  suite.check_names(metrics)
  if 'clip_score' in metrics and not samples.texts:
    raise ValueError('clip_score needs what the samples should show: --prompts FILE, one prompt a line')
  is_path = reference is not None and reference.suffix != '.tar' and not str(reference).startswith(_DATASET)
  if reference is not None and is_path and not reference.expanduser().exists():  # said before the long work
    raise FileNotFoundError(f'there is no {reference} to compare with (--reference)')
  mesh, num = trained.stage.mesh, samples.num
  networks = quality.load_networks(
    metrics, batch_size=samples.batch_size, mesh=mesh, folders=folders, in_dialects=in_dialects
  )
  generate = make_generate(trained.stage.objective.sample, mesh=mesh, batch_size=samples.batch_size)
  found = _features(trained, folder, samples, generate, networks, about, report, metrics, in_dialects)
  compared, how, dataset = _reference(trained, metrics, networks, samples.batch_size, reference, report, in_dialects)
  pictures = _pictures(trained, samples, generate, found, compared, dataset, metrics)
  if not distributed.is_first():
    return None
  if networks.texts is not None:
    found = dict(found) | {'clip_text': networks.texts(list(np.resize(np.array(samples.texts, object), num)))}
  values, protocol = suite.measure(metrics, found, compared, logits=networks.logits)
  values = values | _more(metrics, found, compared, networks, in_dialects)
  result = values | {
    'protocol': {'samples': num, 'seed': samples.seed} | how | protocol | networks.protocol | dict(about)
  }
  if pictures is not None:
    save_png(folder / 'memorisation.png', pictures)
  write_whole(folder / 'result.json', json.dumps(result, indent=2, default=str) + '\n')
  return Result(result, found, compared, networks)


def _features(
  trained: Trained,
  folder: pathlib.Path,
  samples: Samples,
  generate: GenerateFrom,
  networks: quality.Networks,
  about: Mapping[str, Any],
  report: Report,
  metrics: Sequence[str],
  in_dialects: bool,
) -> suite.Features:
  """Features of the samples: those of an earlier call, and new ones; keeps the images where that is asked for."""
  num, first = samples.num, distributed.is_first()
  needs = sorted(suite.needs(metrics) | (dialects.needs(metrics) if in_dialects else set()))
  key = dict(about) | {'seed': samples.seed, 'cond': digest_of(samples.cond), **networks.protocol, 'needs': needs}
  shards = Shards(folder / 'features' if first else None, about=key)
  array, kept = folder / 'samples.npy', f'{samples.save}_{num}'
  keep = {None: None, 'png': quality.keep_png, 'npz': lambda _: quality.keep_npy(array, num)}[samples.save]
  if keep is not None and first and not shards.count(kept):
    quality.forget(folder, array)
  found = quality.collect(
    generate,
    trained.params,
    trained.frozen,
    samples.cond,
    seed=samples.seed,
    num=num,
    mesh=trained.stage.mesh,
    extract=networks.extract,
    shards=shards,
    keep=None if keep is None else keep(folder / 'samples') if first else lambda number, images: None,
    kept=kept,
    progress=lambda done: report(f'{min(done, num):,} of {num:,} samples'),
  )
  if samples.save == 'npz' and array.exists() and first:
    quality.npz_of(array, folder / 'samples.npz')
  return found


def _pictures(
  trained: Trained,
  samples: Samples,
  generate: GenerateFrom,
  found: suite.Features,
  compared: suite.Reference,
  dataset: Any,
  metrics: Sequence[str],
) -> np.ndarray | None:
  """Those samples that are nearest to a training image by Eq. 1 of metrics/memorisation.py, beside that image.

  None where the reference is not the run's own data, or where some of its records cannot be read.
  """
  features = compared.features.get('pool')
  wanted = 'memorisation' in metrics and dataset is not None
  if not wanted or not distributed.agree(int(features is not None and len(features) == dataset.num_examples)):
    return None
  numbers = np.zeros(2 * quality.PAIRS, np.int64)
  count, ratios = 0, np.zeros(0)
  if features is not None and distributed.is_first():
    copies = memorisation(features, found['pool'])
    chosen = np.argsort(copies.ratios)[: quality.PAIRS]
    count, ratios = len(chosen), copies.ratios[chosen]
    numbers[:count], numbers[quality.PAIRS : quality.PAIRS + count] = chosen, copies.nearest[chosen]
  numbers = np.array([distributed.agree(int(number)) for number in numbers])
  count = distributed.agree(count)
  again = functools.partial(generate, trained.params, trained.frozen, samples.cond, seed=samples.seed, num=samples.num)
  made = [to_host(images, trained.stage.mesh)[:size] for images, size in again(only=numbers[:count].tolist())]
  real = [dataset.read(int(number))['image'] for number in numbers[quality.PAIRS : quality.PAIRS + count]]
  if not distributed.is_first() or real[0].shape != made[0].shape[1:]:
    return None
  return quality.side_by_side(np.concatenate(made), real, ratios)


def _reference(
  trained: Trained,
  metrics: Sequence[str],
  networks: quality.Networks,
  batch_size: int,
  path: pathlib.Path | None,
  report: Report,
  in_dialects: bool,
) -> tuple[suite.Reference, dict[str, Any], Any]:
  """The reference, its name for the protocol, and the dataset where it is the run's own."""
  named = str(path).removeprefix(_DATASET) if str(path or '').startswith(_DATASET) else None
  if path is not None and named is None:
    options = {'metrics': metrics, 'extract': networks.extract, 'batch_size': batch_size, 'report': report}
    found, count = read_reference(path, **options)
    return found, {'reference': str(path), 'reference_samples': count}, None
  if all(suite.METRICS[name].of_reference == 'nothing' for name in metrics):
    return suite.Reference({}, {}), {}, None
  needs = sorted(suite.needs(metrics) | (dialects.needs(metrics) if in_dialects else set()))
  dataset = trained.stage.data.dataset if named is None else source(named)
  found = quality.dataset_reference(
    dataset,
    extract=networks.extract,
    about=networks.protocol | {'needs': needs},
    batch_size=batch_size,
    mesh=trained.stage.mesh,
    progress=lambda done: report(f'{done:,} of {dataset.num_examples:,} images of {dataset.name}, once'),
  )
  how = {'reference': f'{dataset.name} ({dataset.split})', 'reference_fingerprint': dataset.fingerprint}
  return found, how | {'reference_samples': dataset.num_examples}, dataset
