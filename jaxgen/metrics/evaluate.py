"""Compares two sets of images by every metric that is asked for: one pass over each set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.npz import holds_statistics
from jaxgen.metrics import reference as statistics_files
from jaxgen.metrics.features import Extract
from jaxgen.metrics.folder import Images, image_batches, open_images
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.inception_score import inception_score
from jaxgen.metrics.kernel_distance import kernel_distance
from jaxgen.metrics.precision_recall import precision_recall
from jaxgen.metrics.statistics import FeatureStatistics, Moments

_KID_SUBSETS = 100
_KID_SUBSET_SIZE = 1000  # fewer where there are fewer samples
_KID_SEED = 2020
_NEIGHBOURS = 3
_INCEPTION_SPLITS = 10


class Evaluation(NamedTuple):
  metrics: dict[str, float]
  protocol: dict[str, Any]  # how the numbers came about


class _ImageSet(NamedTuple):
  moments: Moments
  features: np.ndarray  # kept only for the metrics that need more than moments, else of no rows


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
    images: the generated images: a folder, a .zip of one, or an .npz of samples.
    reference: the real images likewise, or an .npz of their statistics (FID only).
    extract: from `feature_extractor`.
    batch_size: images that are decoded at a time.
    kernel: also the kernel distance, KID.
    coverage: also precision and recall.
    logits: from features to logits, for the Inception Score as well.
    report: gets a line of progress now and then.

  Raises:
    FileNotFoundError, ValueError: images or statistics that are missing, damaged or too few.
  """
  pairs = kernel or coverage
  images, reference = images.expanduser(), reference.expanduser()
  from_statistics = reference.suffix == '.npz' and reference.exists() and holds_statistics(reference)
  if pairs and from_statistics:
    raise ValueError(f'{reference} holds statistics only; KID, precision and recall need a folder of images')
  opened = open_images(images)  # before the reference, so that a mistake shows at once
  if from_statistics:
    real = _ImageSet(statistics_files.read(reference), np.zeros((0, 0)))
  else:
    real = _features(open_images(reference), extract, batch_size, keep=pairs, report=report)
  generated = _features(opened, extract, batch_size, keep=pairs or logits is not None, report=report)
  metrics = {'fid': frechet_distance(generated.moments, real.moments)}
  protocol: dict[str, Any] = {
    'images': str(images),
    'samples': generated.moments.n,
    'reference': str(reference),
    'reference_samples': real.moments.n,
  }
  more = [_kernel(real.features, generated.features)] if kernel else []
  more += [_coverage(real.features, generated.features)] if coverage else []
  more += [_inception(logits(generated.features))] if logits is not None else []
  for evaluation in more:
    metrics |= evaluation.metrics
    protocol |= evaluation.protocol
  return Evaluation(metrics, protocol)


def _kernel(real: np.ndarray, generated: np.ndarray) -> Evaluation:
  size = min(_KID_SUBSET_SIZE, len(real), len(generated))
  distance = kernel_distance(generated, real, subsets=_KID_SUBSETS, subset_size=size, seed=_KID_SEED)
  return Evaluation(
    {'kid': distance.mean, 'kid_deviation': distance.deviation},
    {'kid_subsets': _KID_SUBSETS, 'kid_subset_size': size, 'kid_seed': _KID_SEED},
  )


def _coverage(real: np.ndarray, generated: np.ndarray) -> Evaluation:
  shares = precision_recall(real, generated, neighbours=_NEIGHBOURS)
  return Evaluation(shares._asdict(), {'precision_recall_neighbours': _NEIGHBOURS})


def _inception(logits: np.ndarray) -> Evaluation:
  score = inception_score(logits, splits=_INCEPTION_SPLITS)
  return Evaluation(
    {'inception_score': score.mean, 'inception_score_deviation': score.deviation},
    {'inception_score_splits': _INCEPTION_SPLITS},
  )


def _features(
  images: Images, extract: Extract, batch_size: int, *, keep: bool, report: Callable[[str], None]
) -> _ImageSet:
  statistics, kept = FeatureStatistics(), []
  for batch in image_batches(images, batch_size=batch_size):
    features = extract(batch)
    statistics.update(features)
    if keep:
      kept.append(features)
    report(f'{images.where}: {statistics.n} of {len(images.names)} images{images.skipped}')
  return _ImageSet(statistics.finalize(), np.concatenate(kept) if keep else np.zeros((0, 0)))
