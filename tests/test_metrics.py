"""Metrics from features: against a public implementation, against analysis, and one contract for all."""

import math
from pathlib import Path

import numpy as np
import pytest

from jaxgen.metrics import reference
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.inception_score import inception_score
from jaxgen.metrics.kernel_distance import kernel_distance
from jaxgen.metrics.precision_recall import precision_recall
from jaxgen.metrics.statistics import FeatureStatistics, Moments

GOLDEN = Path(__file__).parent / 'golden' / 'metrics.npz'


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


def moments(features, batches=7) -> Moments:
  statistics = FeatureStatistics()
  for batch in np.array_split(features, batches):
    statistics.update(batch)
  return statistics.finalize()


def fid(real, generated):
  return frechet_distance(moments(real), moments(generated))


def kid(real, generated):
  return kernel_distance(real, generated, subset_size=len(generated), subsets=1).mean


def imprecision(real, generated):
  return 1 - precision_recall(real, generated).precision


def unrecalled(real, generated):
  return 1 - precision_recall(real, generated).recall


DISTANCES = [fid, kid, imprecision, unrecalled]


@pytest.mark.parametrize('distance', DISTANCES)
def test_contract_of_a_distance(distance):
  """Nearer is smaller, the same is (about) nothing, order and a common shift do not matter, too few is an error."""
  rng = np.random.default_rng(0)
  real, near, far = rng.normal(size=(3, 300, 8)) + np.array([0, 0.5, 3])[:, None, None]
  assert distance(real, real) <= 1e-9
  assert distance(real, near) < distance(real, far)
  shuffled = rng.permutation(near)
  assert distance(real, shuffled) == pytest.approx(distance(real, near), rel=1e-9)
  if distance is not kid:  # its kernel has an origin
    assert distance(real + 5, near + 5) == pytest.approx(distance(real, near), rel=1e-6)
  with pytest.raises(ValueError, match=r'too few|not defined|subset_size'):
    distance(real, near[:1] if distance is fid else near[:0])


def test_fid_agrees(golden):
  got = fid(golden['real'], golden['fake'])
  assert got == pytest.approx(float(golden['frechet_inception_distance']), rel=1e-6)


def test_kid_agrees(golden):
  got = kernel_distance(golden['real'], golden['fake'], subsets=100, subset_size=200, seed=2020)
  assert got.mean == pytest.approx(float(golden['kernel_inception_distance_mean']), rel=1e-5)
  assert got.deviation == pytest.approx(float(golden['kernel_inception_distance_std']), rel=1e-4)


def test_inception_score_agrees(golden):
  got = inception_score(golden['logits'], splits=10, seed=None)  # made with samples_shuffle=False
  assert got.mean == pytest.approx(float(golden['inception_score_mean']), rel=1e-9)
  assert got.deviation == pytest.approx(float(golden['inception_score_std']), rel=1e-9)


def test_inception_score_deals_samples_out_as_torch_fidelity(golden):
  order = np.random.RandomState(2020).permutation(len(golden['logits']))
  assert inception_score(golden['logits']) == inception_score(golden['logits'][order], seed=None)
  by_class = np.sort(np.arange(600) % 10)
  assert inception_score(50.0 * np.eye(10)[by_class], splits=10).mean > 9
  assert inception_score(50.0 * np.eye(10)[by_class], splits=10, seed=None).mean == pytest.approx(1)


def test_precision_and_recall_agree(golden):
  # torch-fidelity's numbers were made with its first input, which it takes to be the real one, generated:
  # 0.9383333 is 563 of 600, a share of `real`, so it is recall in the words of the paper.
  got = precision_recall(golden['real'], golden['fake'], neighbours=3)
  assert got.recall == pytest.approx(float(golden['precision']), abs=1e-6)
  assert got.precision == pytest.approx(float(golden['recall']), abs=1e-6)


def test_precision_is_fidelity_and_recall_is_diversity():
  rng = np.random.default_rng(1)
  real = rng.normal(size=(400, 4))
  one_mode = real[:100] + 0.01 * rng.normal(size=(100, 4)) * 0.01
  got = precision_recall(real, np.concatenate([one_mode[:1]] * 100) + 1e-3 * rng.normal(size=(100, 4)))
  assert got.precision > 0.9
  assert got.recall < 0.1


def test_inception_score_of_known_logits():
  sure = 50.0 * np.tile(np.eye(10), (20, 1))
  assert inception_score(sure, splits=2, seed=None).mean == pytest.approx(10, rel=1e-9)
  assert inception_score(np.zeros((40, 10)), splits=2).mean == pytest.approx(1, rel=1e-12)
  with pytest.raises(ValueError, match='splits'):
    inception_score(np.zeros((4, 10)), splits=5)


def test_frechet_distance_of_gaussians():
  rng = np.random.default_rng(2)
  variances = rng.uniform(0.1, 3, size=(2, 6))
  means = rng.normal(size=(2, 6))
  a, b = (Moments(1000, mean, np.diag(variance)) for mean, variance in zip(means, variances, strict=True))
  wanted = np.sum((means[0] - means[1]) ** 2) + np.sum((variances[0] ** 0.5 - variances[1] ** 0.5) ** 2)
  assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-12)
  rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
  turned = [Moments(m.n, rotation @ m.mean, rotation @ m.cov @ rotation.T) for m in (a, b)]
  assert frechet_distance(*turned) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(('n', 'm'), [(40, 500), (500, 40), (40, 30)])
def test_frechet_distance_of_fewer_samples_than_features(n, m):
  """Against the singular values of the centred features, which need no covariance (and so no rank)."""
  rng = np.random.default_rng(3)
  x, y = rng.normal(size=(n, 64)) * np.geomspace(1e-3, 1, 64), rng.normal(size=(m, 64)) + 0.1
  overlap = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T, compute_uv=False).sum() / math.sqrt((n - 1) * (m - 1))
  a, b = moments(x), moments(y)
  wanted = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * overlap
  assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-10)


def test_frechet_distance_refuses_what_does_not_compare():
  a = moments(np.random.default_rng(0).normal(size=(20, 4)))
  with pytest.raises(ValueError, match='one network'):
    frechet_distance(a, moments(np.ones((20, 5))))
  with pytest.raises(ValueError, match='not finite'):
    frechet_distance(a, a._replace(mean=np.full(4, np.nan)))


def test_statistics_do_not_depend_on_the_batches():
  """Features far from zero, where sums of squares would lose ten digits."""
  features = 1e5 + np.random.default_rng(4).normal(size=(1000, 8)).astype(np.float64)
  wanted_mean, wanted_cov = features.mean(0), np.cov(features, rowvar=False)
  for batches in (1, 3, 999):
    got = moments(features, batches)
    assert got.n == 1000
    np.testing.assert_allclose(got.mean, wanted_mean, rtol=1e-14)
    np.testing.assert_allclose(got.cov, wanted_cov, atol=1e-11)


def test_statistics_of_nothing_are_refused():
  statistics = FeatureStatistics()
  statistics.update(np.zeros((0, 8)))
  with pytest.raises(ValueError, match='at least 2'):
    statistics.finalize()


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path))
  return tmp_path


def test_reference_statistics_are_kept_for_each_key(home):
  key = {'dataset': 'a1', 'split': 'train', 'preprocessing': 'crop 32', 'resize': 'tf1_bilinear', 'weights': 'w'}
  first = moments(np.random.default_rng(0).normal(size=(50, 4)))
  reference.write(reference.cached_path(key), first, key)
  again = reference.read(reference.cached_path(dict(reversed(key.items()))))
  assert again.n == first.n == 50
  np.testing.assert_array_equal(again.mean, first.mean)
  np.testing.assert_array_equal(again.cov, first.cov)
  paths = {reference.cached_path(key | {name: 'other'}) for name in key}
  assert len(paths) == len(key)
  assert not any(path.exists() for path in paths)
  assert list((home / 'statistics').iterdir()) == [reference.cached_path(key)]


def test_statistics_of_other_programs_are_read(tmp_path):
  path = tmp_path / 'theirs.npz'
  wanted = moments(np.random.default_rng(0).normal(size=(50, 4)))
  np.savez(path, mu=wanted.mean, sigma=wanted.cov)
  got = reference.read(path)
  assert got.n is None
  assert frechet_distance(got, wanted) == pytest.approx(0, abs=1e-12)
  np.savez(path, mu=wanted.mean, sigma=wanted.cov[:2])
  with pytest.raises(ValueError, match='do not fit'):
    reference.read(path)
  np.savez(path, mu=np.array([object()]), sigma=wanted.cov)  # a pickle inside
  with pytest.raises(ValueError, match='holds no statistics'):
    reference.read(path)
  path.write_bytes(b'PK\x03\x04 cut off')
  with pytest.raises(ValueError, match='holds no statistics'):
    reference.read(path)
