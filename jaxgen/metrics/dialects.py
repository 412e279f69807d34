"""One set of samples in the dialects in print: what each program would report, side by side.

                  8 bits of a sample    to 299 x 299               Inception Score
  torch-fidelity  rounded               TensorFlow 1's bilinear    10 parts, shuffled
  adm             truncated             TensorFlow 1's bilinear    parts of 5,000 in order      sFID too
  clean-fid       rounded               Pillow's bicubic           none

Programs that save 8 bits themselves decide about the first column; for files of images nothing is left to decide.
Differs from ADM's program: it measures precision and recall by distances of half precision, here they are exact.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.metrics import suite
from jaxgen.metrics.inception_score import inception_score

PART_OF_ADM = 5000  # samples of each part of its Inception Score


class Dialect(NamedTuple):
  """What a program measures, and from which features.

  Attributes:
    features: the features that stand for `pool` and `spatial`.
    metrics: names of `suite.METRICS` that the program has.
  """

  features: Mapping[str, str]
  metrics: tuple[str, ...]


DIALECTS = {
  'torch-fidelity': Dialect({'pool': 'pool'}, ('fid', 'kid', 'inception_score', 'precision_recall')),
  'adm': Dialect(
    {'pool': 'pool_truncated', 'spatial': 'spatial_truncated'}, ('fid', 'sfid', 'inception_score', 'precision_recall')
  ),
  'clean-fid': Dialect({'pool': 'pool_clean'}, ('fid', 'kid')),
}


def needs(metrics: Sequence[str]) -> set[str]:
  """The features that the dialects need for those of `metrics` that they have."""
  wanted = set()
  for dialect in DIALECTS.values():
    of_metrics = suite.needs([name for name in metrics if name in dialect.metrics])
    wanted |= {there for here, there in dialect.features.items() if here in of_metrics}
  return wanted


def measure(
  metrics: Sequence[str],
  samples: suite.Features,
  reference: suite.Features,
  *,
  logits: suite.Logits | None,
) -> dict[str, dict[str, float]]:
  """The numbers of each dialect that has any of `metrics`.

  Args:
    metrics: names of `suite.METRICS`.
    samples: features of the samples, with those of `needs`.
    reference: features of the reference images likewise.
    logits: function from features to logits, for the Inception Score.

  Raises:
    ValueError: none of the metrics is in any dialect, or one is not defined for so few images.
  """
  found = {}
  for program, dialect in DIALECTS.items():
    names = [name for name in metrics if name in dialect.metrics]
    if not names:
      continue
    its = {here: samples[there] for here, there in dialect.features.items() if there in samples}
    real = {here: reference[there] for here, there in dialect.features.items() if there in reference}
    moments = {name: suite.moments_of(features) for name, features in real.items()}
    values, _ = suite.measure(names, its, suite.Reference(real, moments), logits=logits)
    if program == 'adm' and logits is not None and 'inception_score' in names:
      values = {name: value for name, value in values.items() if not name.startswith('inception_score')}
      values['inception_score'] = _score_of_adm(logits(its['pool']))
    found[program] = values
  if not found:
    raise ValueError(f'no program of {", ".join(DIALECTS)} has {", ".join(metrics)}; wanted fid, kid, ... besides')
  return found


def _score_of_adm(logits: np.ndarray) -> float:
  parts = [logits[begin : begin + PART_OF_ADM] for begin in range(0, len(logits), PART_OF_ADM)]
  return float(np.mean([inception_score(part, splits=1, seed=None).mean for part in parts]))


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """The dialects as lines of text."""
  names = list(dict.fromkeys(name for values in found.values() for name in values if not name.endswith('_deviation')))
  rows = [['', *names]]
  rows += [[program, *(f'{values[n]:.5g}' if n in values else '' for n in names)] for program, values in found.items()]
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
