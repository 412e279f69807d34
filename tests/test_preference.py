"""Statistics of judgements: against published numbers and other libraries', and over simulated studies."""

import numpy as np
import pytest

from jaxgen.metrics import preference

WINS = np.array([[0.0, 19, 15, 8], [9, 0, 3, 1], [6, 24, 0, 27], [15, 18, 29, 0]])
_ = np.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C.
RATINGS = np.array(
  [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
  ]
)


def test_wilson_agrees_with_statsmodels():
  got = preference.wilson(0.3, 50)
  assert (got.low, got.high) == pytest.approx((0.19103553500880943, 0.437503504644534), rel=1e-12)
  assert preference.wilson(0.0, 10).low == 0
  assert preference.wilson(1.0, 10).high == 1
  with pytest.raises(ValueError, match='no interval'):
    preference.wilson(0.5, 0)


@pytest.mark.parametrize(
  ('difference', 'published'),
  [(preference.nominal, 0.743), (preference.ordinal, 0.815), (preference.interval, 0.849)],
)
def test_alpha_is_krippendorffs(difference, published):
  assert preference.krippendorff_alpha(RATINGS, difference=difference) == pytest.approx(published, abs=5e-4)


def test_alpha_without_anything_judged_twice_is_not_known():
  assert preference.krippendorff_alpha(np.array([[1.0, _], [_, 2.0]])) is None
  assert preference.krippendorff_alpha(np.array([[1.0, 1.0], [1.0, 1.0]])) is None
  assert preference.krippendorff_alpha(np.array([[1.0, 2.0], [1.0, 2.0]])) == 1


def test_strengths_agree_with_choix():
  wanted = [0.24158778, -1.18448574, 0.32557977, 0.61731818]  # choix.mm_pairwise
  np.testing.assert_allclose(preference.bradley_terry(WINS), wanted, atol=1e-8)
  np.testing.assert_allclose(preference.bradley_terry(np.stack([WINS, WINS.T]))[1], preference.bradley_terry(WINS.T))


def test_strengths_of_two_are_the_logarithm_of_their_odds():
  s = preference.bradley_terry(np.array([[0.0, 30], [10, 0]]))
  assert s[0] - s[1] == pytest.approx(np.log(3), rel=1e-10)
  assert preference.elo(s[0]) - preference.elo(s[1]) == pytest.approx(400 * np.log10(3))


def test_strengths_of_one_that_always_won_need_a_prior():
  always = np.array([[0.0, 5], [0, 0]])
  with pytest.raises(ValueError, match='always won'):
    preference.bradley_terry(always)
  assert np.isfinite(preference.bradley_terry(always, prior=1.0)).all()


def test_holm_agrees_with_statsmodels():
  got = preference.holm(np.array([0.01, 0.04, 0.03, 0.5, 0.002]))
  np.testing.assert_allclose(got, [0.04, 0.09, 0.09, 0.5, 0.01])


def test_votes_needed():
  assert preference.votes_needed(0.6) == preference.votes_needed(0.4) == 194  # G*Power 3.1, z test of a proportion
  assert preference.votes_needed(preference.detectable(194)) <= 194
  with pytest.raises(ValueError, match=r'0\.5'):
    preference.votes_needed(0.5)


def test_a_vote_that_is_given_twice_is_not_two():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 2, 100).astype(float)
  once = preference.win_rate(scores, np.arange(100), np.zeros(100, int))
  twice = preference.win_rate(np.repeat(scores, 2), np.repeat(np.arange(100), 2), np.tile([0, 1], 100))
  assert once.effective == pytest.approx(99, abs=1.5)
  assert twice.votes == 200
  assert twice.effective == pytest.approx(once.effective, rel=1e-6)
  all_alike = preference.win_rate(np.ones(40), np.repeat(np.arange(10), 4), np.tile(np.arange(4), 10))
  assert all_alike.effective == 10


def study(rng, strengths, *, pairs=40, raters=6, of_pairs=0.5, of_raters=0.3, ties=0.1):
  """Votes of a population: each pair of images and each rater leans its own way."""
  m = len(strengths)
  rows = []
  for a in range(m):
    for b in range(a + 1, m):
      lean_of_pairs, lean_of_raters = of_pairs * rng.normal(size=pairs), of_raters * rng.normal(size=raters)
      logit = strengths[a] - strengths[b] + lean_of_pairs[:, None] + lean_of_raters
      won = rng.random((pairs, raters)) < 1 / (1 + np.exp(-logit))
      scores = np.where(rng.random((pairs, raters)) < ties, 0.5, won)
      index = np.indices((pairs, raters)).reshape(2, -1)
      rows.append((np.full(pairs * raters, a), np.full(pairs * raters, b), scores.ravel(), *index))
  first, second, scores, of_pair, rater = (np.concatenate(column) for column in zip(*rows, strict=True))
  return first, second, scores, first * 1000 * m + second * 1000 + of_pair, rater


def true_rate(strengths, *, of_pairs=0.5, of_raters=0.3, ties=0.1):
  lean = np.random.default_rng(1).normal(size=400_000) * np.hypot(of_pairs, of_raters)
  return (1 - ties) * np.mean(1 / (1 + np.exp(-(strengths[0] - strengths[1] + lean)))) + ties / 2


STUDIES = 400
# A 95% interval that is right covers the truth in at least 92.5% of 400 studies, but for one time in a hundred
# (binomial: 95% - 2.33 * sqrt(0.95 * 0.05 / 400)).
AT_LEAST = 0.95 - 2.33 * np.sqrt(0.95 * 0.05 / STUDIES)


@pytest.mark.parametrize('raters', [3, 10])
def test_the_interval_of_a_win_rate_covers_the_truth(raters):
  rng, strengths, covered = np.random.default_rng(raters), (0.6, 0.0), 0
  # Three raters are too few to tell how raters differ, so they are taken as given: here they do not differ.
  spread = 0.3 if raters >= 5 else 0.0
  truth = true_rate(strengths, of_raters=spread)
  for _study in range(STUDIES):
    _, _, scores, pairs, who = study(rng, strengths, raters=raters, of_raters=spread)
    interval = preference.win_rate(scores, pairs, who).interval
    covered += interval.low <= truth <= interval.high
  assert covered / STUDIES >= AT_LEAST


def test_a_study_of_equals_finds_nothing():
  rng, found = np.random.default_rng(7), 0
  for _study in range(STUDIES):
    p_values = []
    for _question in range(3):
      _, _, scores, pairs, who = study(rng, (0.0, 0.0), raters=8)
      p_values.append(preference.win_rate(scores, pairs, who).p_value)
    found += preference.holm(np.array(p_values)).min() < 0.05
  assert 1 - found / STUDIES >= AT_LEAST


def test_the_intervals_of_strengths_cover_the_truth():
  rng, studies, covered = np.random.default_rng(3), 60, 0
  strengths = np.array([0.5, 0.0, -0.5])
  for seed in range(studies):
    # Without leanings the strengths of Eq. 3 are the population's own.
    first, second, scores, pairs, who = study(rng, strengths, pairs=30, raters=6, of_pairs=0, of_raters=0, ties=0)
    options = {'pairs': pairs, 'raters': who, 'contenders': 3, 'resamples': 200, 'seed': seed}
    found = preference.bradley_terry_intervals(first, second, scores, **options)
    covered += sum(one.low <= truth <= one.high for one, truth in zip(found, strengths, strict=True))
  # 180 intervals, three of a study not independent: within 4 standard deviations of 60 studies.
  assert covered / (3 * studies) >= 0.95 - 4 * np.sqrt(0.95 * 0.05 / (3 * studies))
