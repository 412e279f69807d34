"""Is one trained model better than another? Samples are paired: the i-th of both have one prompt and one seed.

The pairs are dealt into B blocks, and each block is measured for both models:

  d_b = metric of the second model's block b - metric of the first's                        (1)
  mean d +- t(B - 1) sd(d) / sqrt(B),   p of Student's test of mean d = 0                   (2)

A pair's two samples share what the prompt and the seed do, which cancels in Eq. 1. The interval is for samples; the
reference and the two sets of weights are taken as given. Metrics that depend on the number of samples, such as FID, are
those of a block's number, so that their difference is not that of the whole sets. P-values of several metrics are
adjusted by Holm.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgen.metrics import suite
from jaxgen.metrics.preference import holm

BLOCKS = 10


class Difference(NamedTuple):
  """Eq. 2 of one number.

  Attributes:
    first, second: mean over the blocks of each model.
    difference: second - first.
    low, high: 95% interval of the difference.
    p_value: adjusted for the number of metrics.
  """

  first: float
  second: float
  difference: float
  low: float
  high: float
  p_value: float


def compare(
  metrics: Sequence[str],
  first: suite.Features,
  second: suite.Features,
  reference: suite.Reference,
  *,
  logits: suite.Logits | None = None,
  blocks: int = BLOCKS,
  seed: int = 2020,
) -> dict[str, Difference]:
  """Eq. 2 of every number of `metrics`, standard errors and deviations aside.

  Raises:
    ValueError: sets of other sizes, or blocks that are too small for a metric.
  """
  sizes = {len(values) for features in (first, second) for values in features.values()}
  if len(sizes) != 1 or (size := sizes.pop()) < 2 * blocks:
    raise ValueError(f'{sorted(sizes) or size} samples; wanted as many of both, at least {2 * blocks}, in pairs')
  order = np.random.RandomState(seed).permutation(size // 2)  # neighbours stay together: LPIPS compares them
  parts = [np.stack([2 * part, 2 * part + 1], 1).ravel() for part in np.array_split(order, blocks)]
  least = min(map(len, parts))
  reference = reference._replace(radii={})
  found: list[tuple[dict[str, float], dict[str, float]]] = []
  for part in parts:
    rows = part[:least]
    each = [
      suite.measure(metrics, {name: values[rows] for name, values in features.items()}, reference, logits=logits)[0]
      for features in (first, second)
    ]
    found.append((each[0], each[1]))
  names = [name for name in found[0][0] if not name.endswith(('_deviation', '_standard_error'))]
  values = {name: np.array([[of[name] for of in pair] for pair in found]) for name in names}
  raw = {name: _difference(pairs) for name, pairs in values.items()}
  adjusted = holm(np.array([difference.p_value for difference in raw.values()]))
  return {
    name: difference._replace(p_value=float(p)) for (name, difference), p in zip(raw.items(), adjusted, strict=True)
  }


def _difference(pairs: np.ndarray) -> Difference:
  from scipy import stats

  d = pairs[:, 1] - pairs[:, 0]
  mean, error = d.mean(), d.std(ddof=1) / np.sqrt(len(d))
  half = stats.t.ppf(0.975, len(d) - 1) * error
  p = 2 * stats.t.sf(abs(mean) / error, len(d) - 1) if error else float(mean == 0)
  a, b = pairs.mean(0)
  return Difference(float(a), float(b), float(mean), float(mean - half), float(mean + half), float(p))


def table(found: dict[str, Difference], names: Sequence[str]) -> str:
  """The differences as lines of text, and what they mean."""
  lines = [f'{"":>22}  {names[0]:>12}  {names[1]:>12}  difference (95% interval)']
  for name, one in found.items():
    verdict = 'differ' if one.p_value < 0.05 else 'no difference shown'
    lines.append(
      f'{name:>22}  {one.first:12.4g}  {one.second:12.4g}  {one.difference:+.4g} ({one.low:+.4g} to {one.high:+.4g}), '
      f'p {one.p_value:.2g}: {verdict}'
    )
  return '\n'.join(lines)
