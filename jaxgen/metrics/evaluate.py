"""Compares two sets of images by every metric that is asked for: one pass over each set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.metrics import reference as statistics_files
from jaxgen.metrics.features import Extract
from jaxgen.metrics.folder import image_batches, image_files
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.inception_score import inception_score
from jaxgen.metrics.kernel_distance import kernel_distance
from jaxgen.metrics.precision_recall import precision_recall
from jaxgen.metrics.statistics import FeatureStatistics, Moments

_KID_SUBSET_SIZE = 1000
_INCEPTION_SPLITS = 10


class Evaluation(NamedTuple):
  metrics: dict[str, float]
  protocol: dict[str, Any]  # how the numbers came about


class _ImageSet(NamedTuple):
  moments: Moments
  features: np.ndarray | None  # kept only for the metrics that need more than moments


def evaluate(
  images: Path,
  reference: Path,
  *,
  extract: Extract,
  batch_size: int,
  kernel: bool = False,
  coverage: bool = False,
  logits: Callable[[np.ndarray], np.ndarray] | None = None,
  report: Callable[[str], None] = lambda message: None,
) -> Evaluation:
  """FID, and other metrics where asked for, of a folder of images.

  Args:
    images: the folder of generated images.
    reference: a folder of real images, or an .npz of their statistics (FID only).
    extract: from `feature_extractor`.
    batch_size: images that are decoded at a time.
    kernel: also the kernel distance, KID.
    coverage: also precision and recall.
    logits: from features to logits, for the Inception Score as well.
    report: gets a line of progress now and then.

  Raises:
    FileNotFoundError, ValueError: images or statistics that are missing, damaged or too few.
  """
  keep = kernel or coverage
  from_file = reference.suffix == '.npz'
  if keep and from_file:
    raise ValueError(f'{reference} holds statistics only; KID, precision and recall need a folder of images')
  files = [image_files(images), [] if from_file else image_files(reference)]
  real = (
    _ImageSet(statistics_files.read(reference), None)
    if from_file
    else _features(files[1], extract, batch_size, keep=keep, report=report)
  )
  generated = _features(files[0], extract, batch_size, keep=keep or logits is not None, report=report)
  metrics = {'fid': frechet_distance(generated.moments, real.moments)}
  protocol: dict[str, Any] = {
    'images': str(images),
    'samples': generated.moments.n,
    'reference': str(reference),
    'reference_samples': real.moments.n,
  }
  if kernel:
    size = min(_KID_SUBSET_SIZE, generated.moments.n, real.moments.n)
    distance = kernel_distance(generated.features, real.features, subset_size=size)
    metrics |= {'kid': distance.mean, 'kid_deviation': distance.deviation}
    protocol |= {'kid_subset_size': size}
  if coverage:
    metrics |= precision_recall(real.features, generated.features)._asdict()
  if logits is not None:
    score = inception_score(logits(generated.features), splits=_INCEPTION_SPLITS)
    metrics |= {'inception_score': score.mean, 'inception_score_deviation': score.deviation}
    protocol |= {'inception_score_splits': _INCEPTION_SPLITS}
  return Evaluation(metrics, protocol)


def _features(
  files: list[Path], extract: Extract, batch_size: int, *, keep: bool, report: Callable[[str], None]
) -> _ImageSet:
  statistics, kept = FeatureStatistics(), []
  for batch in image_batches(files, batch_size=batch_size):
    features = extract(batch)
    statistics.update(features)
    if keep:
      kept.append(features)
    report(f'{files[0].parent}: {statistics.n} of {len(files)} images')
  return _ImageSet(statistics.finalize(), np.concatenate(kept) if keep else None)
