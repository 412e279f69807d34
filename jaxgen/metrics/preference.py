"""Statistics of human judgement: win rates, Bradley-Terry strengths, agreement between raters, votes needed.

A share p of n votes has Wilson's interval (1927), z the normal quantile:

  (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)                         (1)

Votes on one pair of images resemble each other, and so do those of one rater. The variance of their mean is that
of sums over pairs, over raters, and over votes (Cameron, Gelbach & Miller 2011), and n in Eq. 1 becomes the number of
independent votes with that variance:

  V = V_pairs + V_raters - V_votes,   n_effective = p (1 - p) / V, at most n                     (2)

V comes from few pairs and raters, so z is replaced by t with Satterthwaite's degrees of freedom, as if n_effective
were (z / t)^2 of itself (Korn & Graubard 1998).

Bradley & Terry (1952): i is preferred to j with probability

  P(i > j) = 1 / (1 + exp(s_j - s_i)),   sum of s = 0                                            (3)

a tie counts as half a win for each. Krippendorff's alpha (2011) compares the disagreement within the items that
several raters judged with what chance would give:

  alpha = 1 - D_observed / D_expected                                                            (4)
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

_FEW_RATERS = 5  # with fewer, the spread between raters cannot be estimated, and they are taken as given
_MANY = 1e6  # degrees of freedom of a normal distribution
_NEWTON_STEPS = 100

# Coincidences of values (square, symmetric), values -> squared differences.
Difference = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Interval(NamedTuple):
  """An estimate and where the truth is, with the confidence asked for."""

  value: float
  low: float
  high: float


class WinRate(NamedTuple):
  """The share of votes that prefer one side, ties as halves.

  Attributes:
    interval: Eq. 1 at `effective` votes.
    votes: number of votes.
    effective: Eq. 2.
    p_value: two-sided p-value of the hypothesis that both sides are equal; below 0.05 where the 95% interval leaves
      out 1/2.
  """

  interval: Interval
  votes: int
  effective: float
  p_value: float


def wilson(share: float, n: float, *, confidence: float = 0.95) -> Interval:
  """Eq. 1.

  Raises:
    ValueError: no votes, or a share outside of [0, 1].
  """
  if n <= 0 or not 0 <= share <= 1:
    raise ValueError(f'a share of {share} among {n} votes has no interval; wanted a share of 0 to 1 and votes')
  z2 = _quantile(confidence) ** 2
  middle, spread = share + z2 / (2 * n), math.sqrt(z2 * share * (1 - share) / n + z2 * z2 / (4 * n * n))
  return Interval(share, max(0.0, (middle - spread) / (1 + z2 / n)), min(1.0, (middle + spread) / (1 + z2 / n)))


def win_rate(
  scores: Float[np.ndarray, 'v'],
  pairs: Int[np.ndarray, 'v'],
  raters: Int[np.ndarray, 'v'],
  *,
  confidence: float = 0.95,
) -> WinRate:
  """The win rate of one side.

  Args:
    scores: 1 where the vote prefers this side, 0 where the other, 1/2 for a tie.
    pairs: the judged pairs, by number.
    raters: who judged, by number.
  """
  share, n = float(np.mean(scores)) if len(scores) else 0.0, len(scores)
  effective, freedom = effective_votes(scores, pairs, raters) if n else (0.0, 1.0)
  shrink = (_quantile(confidence) / _t_quantile(confidence, freedom)) ** 2
  interval = wilson(share, effective * shrink, confidence=confidence)
  statistic = abs(share - 0.5) / math.sqrt(0.25 / effective)
  return WinRate(interval, n, effective, 2 * float(special.stdtr(freedom, -statistic)))


def effective_votes(
  scores: Float[np.ndarray, 'v'], pairs: Int[np.ndarray, 'v'], raters: Int[np.ndarray, 'v']
) -> tuple[float, float]:
  """Eq. 2 and its degrees of freedom.

  Raters are a random sample of all raters where there are at least five, else they are taken as given.
  """
  share, n = float(np.mean(scores)), len(scores)
  variance, freedom = _variance(scores, pairs, raters)
  if not 0 < share < 1:
    # All votes are alike, which says nothing of how votes on one pair resemble each other: each pair counts once.
    return float(len(np.unique(pairs))), _MANY
  return (min(float(n), share * (1 - share) / variance) if variance > 0 else float(n)), freedom


def _variance(values: np.ndarray, items: np.ndarray, raters: np.ndarray) -> tuple[float, float]:
  """V of Eq. 2, the variance of the mean of `values`, and its degrees of freedom."""
  residuals = values - np.mean(values)
  of_items = _clustered(residuals, items)
  if len(np.unique(raters)) < _FEW_RATERS:
    return _added(of_items, 0.0, 0.0, items, raters)
  return _added(of_items, _clustered(residuals, raters), float(residuals @ residuals) / len(values) ** 2, items, raters)


def _added(
  of_items: float, of_raters: float, of_votes: float, items: np.ndarray, raters: np.ndarray
) -> tuple[float, float]:
  """The sum in Eq. 2, not below what items alone give, and Satterthwaite's degrees of freedom."""
  variance = of_items + max(of_raters - of_votes, 0.0)
  parts = [(of_items, items)] + ([(of_raters, raters)] if of_raters > of_votes else [])
  spread = sum(part**2 / max(len(np.unique(clusters)) - 1, 1) for part, clusters in parts)
  return variance, min(variance**2 / spread, _MANY) if spread > 0 else _MANY


def _clustered(residuals: np.ndarray, clusters: np.ndarray) -> float:
  """The variance of the mean when what is summed within a cluster is independent of other clusters."""
  _, index = np.unique(clusters, return_inverse=True)
  sums = np.bincount(index, weights=residuals)
  m = len(sums)
  return float(sums @ sums) / len(residuals) ** 2 * (m / (m - 1) if m > 1 else 1.0)


def bradley_terry(wins: Float[np.ndarray, '*b m m'], *, prior: float = 0.0) -> Float[np.ndarray, '*b m']:
  """The strengths s of Eq. 3 with the highest likelihood, natural logarithms, of mean 0.

  Args:
    wins: how often row i was preferred to column j; a tie is half a win for each.
    prior: ties added to each pair of contenders: with one that always won, strengths are infinite without.

  Raises:
    ValueError: no strengths exist: two groups were never compared, or one always won.
  """
  m = wins.shape[-1]
  wins = np.asarray(wins, np.float64) + prior / 2 * (1 - np.eye(m))
  if not prior and not all(_connected(each > 0) for each in wins.reshape(-1, m, m)):
    raise ValueError('no finite strengths: some contenders always won, or were never compared; set prior to 1')
  both = wins + np.swapaxes(wins, -1, -2)
  s = np.zeros(wins.shape[:-1])
  for _ in range(_NEWTON_STEPS):
    p = 1 / (1 + np.exp(s[..., None, :] - s[..., :, None]))  # Eq. 3
    gradient = (wins - both * p).sum(-1)
    weight = both * p * (1 - p)
    hessian = np.eye(m) * weight.sum(-1)[..., None] - weight + 1.0 / m  # the last fixes the mean, which is free
    step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
    step *= np.minimum(1.0, 1.0 / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-300))
    s = s + step
    if np.abs(step).max() < 1e-12:
      break
  return s - s.mean(-1, keepdims=True)


def _connected(beats: np.ndarray) -> bool:
  """Whether every contender has, through others, beaten every other."""
  reach = np.linalg.matrix_power(np.asarray(beats, np.float64) + np.eye(len(beats)), len(beats))
  return bool((reach > 0).all())


def bradley_terry_intervals(
  first: Int[np.ndarray, 'v'],
  second: Int[np.ndarray, 'v'],
  scores: Float[np.ndarray, 'v'],
  *,
  pairs: Int[np.ndarray, 'v'],
  raters: Int[np.ndarray, 'v'],
  contenders: int,
  prior: float = 1.0,
  resamples: int = 1000,
  confidence: float = 0.95,
  seed: int = 0,
) -> list[Interval]:
  """Each contender's strength with a bootstrap interval; variances over pairs, raters and votes add as in Eq. 2.

  Args:
    first, second: contenders of each vote, by number.
    scores: 1 where `first` is preferred, 0 where `second`, 1/2 for a tie.
    pairs, raters: as in `win_rate`.
    contenders: number of contenders.
    prior: as in `bradley_terry`.
    resamples: number of resamples of the bootstrap.
    seed: seed of the bootstrap.
  """
  rng = np.random.default_rng(seed)

  won = np.zeros((len(scores), contenders * contenders))
  each = np.arange(len(scores))
  won[each, first * contenders + second] = scores
  won[each, second * contenders + first] = 1 - scores

  def strengths(weights: np.ndarray) -> np.ndarray:
    return bradley_terry((weights @ won).reshape(-1, contenders, contenders), prior=prior)

  def variance(clusters: np.ndarray) -> np.ndarray:
    _, index = np.unique(clusters, return_inverse=True)
    m = index.max() + 1
    drawn = rng.multinomial(m, np.full(m, 1 / m), size=resamples)
    return strengths(drawn[:, index]).var(0) * (m / max(m - 1, 1))

  value, of_pairs = strengths(np.ones((1, len(scores))))[0], variance(pairs)
  of_raters = of_votes = np.zeros(contenders)
  if len(np.unique(raters)) >= _FEW_RATERS:
    of_raters, of_votes = variance(raters), variance(np.arange(len(scores)))
  found = []
  for s, *parts in zip(value, of_pairs, of_raters, of_votes, strict=True):
    spread, freedom = _added(float(parts[0]), float(parts[1]), float(parts[2]), pairs, raters)
    reach = _t_quantile(confidence, freedom) * math.sqrt(spread)
    found.append(Interval(float(s), float(s - reach), float(s + reach)))
  return found


def elo(strength: float) -> float:
  """A strength of Eq. 3 on chess's scale: 400 points are odds of 10, and the mean is 1000."""
  return 1000 + 400 / math.log(10) * strength


def mean_interval(
  values: Float[np.ndarray, 'v'],
  items: Int[np.ndarray, 'v'],
  raters: Int[np.ndarray, 'v'],
  *,
  confidence: float = 0.95,
) -> Interval:
  """A mean opinion score; its variance adds over items and raters as in Eq. 2.

  Raises:
    ValueError: fewer than two items, whose spread is not known.
  """
  groups = len(np.unique(items))
  if groups < 2:
    raise ValueError(f'{groups} items have no spread, so their mean has no interval; rate at least 2')
  variance, freedom = _variance(values, items, raters)
  reach = _t_quantile(confidence, freedom) * math.sqrt(variance)
  mean = float(np.mean(values))
  return Interval(mean, mean - reach, mean + reach)


def nominal(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Values differ or they do not."""
  return (values[:, None] != values[None]).astype(np.float64)


def ordinal(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
  """As many values as lie between two, squared."""
  cumulated = np.cumsum(counts) - counts / 2
  return (cumulated[:, None] - cumulated[None]) ** 2


def interval(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
  return (values[:, None] - values[None]) ** 2


def krippendorff_alpha(ratings: Float[np.ndarray, 'raters items'], *, difference: Difference = nominal) -> float | None:
  """Eq. 4: 1 is full agreement, 0 chance; None where nothing was judged twice or all judgements are one value.

  Args:
    ratings: NaN where a rater did not judge an item.
    difference: `nominal`, `ordinal` or `interval`.
  """
  values, index = np.unique(ratings, return_inverse=True)
  index = index.reshape(ratings.shape)
  values = values[~np.isnan(values)]
  # How often each item got each value.
  table = np.stack([(index == k).sum(0) for k in range(len(values))], axis=1) if len(values) else np.zeros((0, 0))
  table = table[table.sum(1) >= 2].astype(np.float64)
  if not len(table):
    return None
  many = table.sum(1)
  coincidences = (table / (many - 1)[:, None]).T @ table - np.diag((table / (many - 1)[:, None]).sum(0))
  counts = table.sum(0)
  squared = difference(counts, values)
  expected = float(counts @ squared @ counts) / (counts.sum() - 1)
  return None if expected == 0 else 1 - float((coincidences * squared).sum()) / expected


def holm(p_values: Float[np.ndarray, 'k']) -> Float[np.ndarray, 'k']:
  """P-values of several comparisons, adjusted (Holm 1979): all are below 0.05 by chance in 5% of studies at most."""
  order = np.argsort(p_values)
  k = len(p_values)
  adjusted = np.minimum(1.0, np.maximum.accumulate(p_values[order] * (k - np.arange(k))))
  out = np.empty(k)
  out[order] = adjusted
  return out


def votes_needed(share: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
  """Independent votes after which a true win rate of `share` is distinguished from 1/2 with probability `power`.

  Raises:
    ValueError: a share of 1/2, or outside of (0, 1).
  """
  if not 0 < share < 1 or share == 0.5:
    raise ValueError(f'a win rate of {share} cannot be looked for; wanted one between 0 and 1 other than 0.5')
  z = _quantile(confidence) * 0.5 + NormalDist().inv_cdf(power) * math.sqrt(share * (1 - share))
  return math.ceil((z / (share - 0.5)) ** 2)


def detectable(votes: int, *, power: float = 0.8, confidence: float = 0.95) -> float:
  """The smallest win rate that `votes` independent votes distinguish from 1/2; the inverse of `votes_needed`."""
  low, high = 0.5, 1.0
  for _ in range(60):
    middle = (low + high) / 2
    if 0.5 < middle < 1 and votes_needed(middle, power=power, confidence=confidence) <= votes:
      high = middle
    else:
      low = middle
  return high


def _quantile(confidence: float) -> float:
  return NormalDist().inv_cdf(0.5 + confidence / 2)


def _t_quantile(confidence: float, freedom: float) -> float:
  return float(special.stdtrit(freedom, 0.5 + confidence / 2))
