"""Compares two sets of images by every metric that is asked for: each is read once and fed to each network once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.npz import holds_statistics
from jaxgen.metrics import reference as statistics_files
from jaxgen.metrics import suite
from jaxgen.metrics.folder import Images, captions_of, numbered_batches, open_images
from jaxgen.metrics.suite import NamedExtract
from jaxgen.typing import Report


class Evaluation(NamedTuple):
  """What two sets of images say.

  Attributes:
    metrics: numbers by name.
    protocol: how the numbers came about.
    samples, reference: the features that they are of.
  """

  metrics: dict[str, float]
  protocol: dict[str, Any]
  samples: suite.Features
  reference: suite.Reference


def evaluate(
  images: Path | Images,
  reference: Path | Images | None,
  *,
  metrics: Sequence[str],
  extract: NamedExtract,
  batch_size: int,
  logits: suite.Logits | None = None,
  texts: Callable[[Sequence[str]], np.ndarray] | None = None,
  report: Report = lambda message: None,
) -> Evaluation:
  """The metrics of images against a reference.

  Args:
    images: the generated images: a folder, a .zip of one, an .npz of samples, or opened images.
    reference: the real images likewise, or an .npz of their statistics, of which ADM's has images too. None for metrics
      that need none.
    metrics: names of `suite.METRICS`.
    extract: the function that `named_features` returns.
    batch_size: images that are decoded at a time.
    logits: function from features to logits, for the Inception Score.
    texts: function from captions to features, for the CLIP score.
    report: gets a line of progress now and then.

  Raises:
    FileNotFoundError, ValueError: images or statistics that are missing, damaged or too few.
  """
  suite.check_names(metrics)
  opened = images if isinstance(images, Images) else open_images(images)  # before the reference: a mistake shows early
  real, count = read_reference(reference, metrics=metrics, extract=extract, batch_size=batch_size, report=report)
  captions = captions_of(opened) if texts is not None else []
  samples = features_of(opened, extract, batch_size, report=report)
  if texts is not None:
    samples['clip_text'] = texts(captions)
  values, how = suite.measure(metrics, samples, real, logits=logits)
  protocol: dict[str, Any] = {
    'images': str(opened.where),
    'samples': len(opened.names),
  } | ({} if reference is None else {'reference': _where(reference), 'reference_samples': count})
  return Evaluation(values, protocol | how, samples, real)


def _where(reference: Path | Images) -> str:
  return str(reference.where if isinstance(reference, Images) else reference)


def read_reference(
  path: Path | Images | None,
  *,
  metrics: Sequence[str],
  extract: NamedExtract,
  batch_size: int,
  report: Report = lambda message: None,
) -> tuple[suite.Reference, int | None]:
  """The reference, and its number of images; None where a file of statistics does not say.

  Raises:
    FileNotFoundError, ValueError: images or statistics that are missing, damaged or too few.
  """
  wanted = {suite.METRICS[name].of_reference for name in metrics}
  if wanted == {'nothing'}:
    return suite.Reference({}, {}), None
  if path is None:
    raise ValueError(f'{", ".join(metrics)} compare with a reference; give one (--reference)')
  if isinstance(path, Images):
    return _reference_of(path, {}, extract, batch_size, report)
  path = path.expanduser()
  moments = statistics_files.read_all(path) if statistics_files.has_statistics(path) else {}
  if moments and ('features' not in wanted or holds_statistics(path)):
    if 'features' in wanted:
      name = next(name for name in metrics if suite.METRICS[name].of_reference == 'features')
      raise ValueError(f'{path} holds statistics only; {name} needs a folder of images')
    return suite.Reference({}, moments), moments['pool'].n
  if path.suffix == '.npz' and path.exists() and holds_statistics(path):
    statistics_files.read(path)  # says what is wrong
  return _reference_of(open_images(path), moments, extract, batch_size, report)


def _reference_of(
  images: Images, moments: dict[str, Any], extract: NamedExtract, batch_size: int, report: Report
) -> tuple[suite.Reference, int]:
  """The features of images, with what moments are known of them."""
  features = features_of(images, extract, batch_size, report=report)
  moments = {name: suite.moments_of(features[name]) for name in suite.FRECHET if name in features} | moments
  return suite.Reference(features, moments), len(next(iter(features.values())))


def features_of(
  images: Images, extract: NamedExtract, batch_size: int, *, report: Report = lambda message: None
) -> dict[str, np.ndarray]:
  """Features by name of every image, in the order of the images' names."""
  parts: list[dict[str, np.ndarray]] = []
  numbers: list[int] = []
  for batch_numbers, batch in numbered_batches(images, batch_size=batch_size):
    parts.append(extract(batch))
    numbers += batch_numbers
    report(f'{images.where}: {len(numbers)} of {len(images.names)} images')
  order = np.argsort(numbers)
  found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  return {name: values if name == 'lpips' else values[order] for name, values in found.items()}
