"""Every metric of two sets of images, from features that were made once: each number with its protocol.

`METRICS` says what each metric needs of the samples and of the reference. Features are arrays by name:

  pool        n 2048   Inception's, of FID, KID, precision and recall, density and coverage, memorisation, and the score
  spatial     n 2023   Inception's, of sFID
  lpips       n        distance of each image to the one after it (NaN where it has no partner): diversity
  dinov2      n 1024   DINOv2's, of the metrics named after it (Stein et al. 2023)
  clip        n 768    CLIP's of 336 pixels, of CMMD
  clip_image  n 512    CLIP's, of the CLIP score
  clip_text   n 512    those of each image's text, which the caller adds
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxgen.metrics.clip_score import clip_score
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.frechet_extrapolation import frechet_extrapolation
from jaxgen.metrics.inception_score import inception_score
from jaxgen.metrics.kernel_distance import kernel_distance
from jaxgen.metrics.maximum_mean_discrepancy import cmmd
from jaxgen.metrics.memorisation import THRESHOLD, memorisation
from jaxgen.metrics.precision_recall import density_coverage, precision_recall, squared_radii
from jaxgen.metrics.sliced_wasserstein import sliced_wasserstein
from jaxgen.metrics.statistics import FeatureStatistics, Moments

FULL = 50_000  # samples of a FID that may be called so
KID_SUBSETS, KID_SUBSET_SIZE, SEED = 100, 1000, 2020
SPLITS = 10
DIRECTIONS = 1024  # random directions of MIND
NEIGHBOURS, NEIGHBOURS_OF_DENSITY = 3, 5
FRECHET = ('pool', 'spatial', 'dinov2')  # features whose mean and covariance are compared

Features = Mapping[str, np.ndarray]
NamedExtract = Callable[[Any], dict[str, np.ndarray]]  # a batch of images -> features by name
Logits = Callable[[np.ndarray], np.ndarray]  # Inception's features -> its logits, for the Inception Score


class Reference(NamedTuple):
  """The reference of the samples.

  Attributes:
    features: features of the reference images; {} where only their statistics are known.
    moments: mean and covariance by the name of the features.
    radii: where squared radii are kept, by features and neighbours, for who measures several sets; None for nowhere.
  """

  features: Features
  moments: Mapping[str, Moments]
  radii: dict[tuple[str, int], np.ndarray] | None = None

  def squared_radii(self, features: str, neighbours: int) -> np.ndarray | None:
    """Those of the reference's features, computed once; None where they are not kept."""
    if self.radii is None or len(self.features[features]) <= neighbours:
      return None
    if (features, neighbours) not in self.radii:
      self.radii[features, neighbours] = squared_radii(self.features[features], neighbours)
    return self.radii[features, neighbours]


class Measured(NamedTuple):
  """Numbers of one metric, and its protocol."""

  values: dict[str, float]
  protocol: dict[str, Any]


class Metric(NamedTuple):
  """A way to judge samples.

  Attributes:
    measure: (samples' features, reference, logits) -> numbers and protocol.
    features: features that it needs of the samples.
    of_reference: what the reference has to give: 'features', 'moments' or 'nothing'.
    named_by_number: the numbers' names say how many samples they are of, since their value depends on it.
  """

  measure: Callable[[Features, Reference, Logits | None], Measured]
  features: tuple[str, ...] = ('pool',)
  of_reference: str = 'features'
  named_by_number: bool = False


def moments_of(features: np.ndarray) -> Moments:
  statistics = FeatureStatistics()
  for begin in range(0, len(features), 2048):
    statistics.update(features[begin : begin + 2048])
  return statistics.finalize()


def _frechet(samples: Features, reference: Reference, logits: Any, *, name: str, features: str) -> Measured:
  return Measured({name: frechet_distance(moments_of(samples[features]), reference.moments[features])}, {})


def _sfid(samples: Features, reference: Reference, logits: Any) -> Measured:
  if 'spatial' not in reference.moments:
    raise ValueError('the reference has no mu_s and sigma_s, which sFID needs; give images, or statistics of ADM')
  found = frechet_distance(moments_of(samples['spatial']), reference.moments['spatial'])
  return Measured({'sfid': found}, {'sfid_features': '17 x 17 x 7 of mixed_6/conv'})


def _fid_infinity(samples: Features, reference: Reference, logits: Any) -> Measured:
  found = frechet_extrapolation(samples['pool'], reference.moments['pool'], seed=SEED)
  how = '15 random subsets, linear in 1/n (Chong & Forsyth 2020)'
  values = {'fid_infinity': found.value, 'fid_infinity_standard_error': found.standard_error}
  return Measured(values, {'fid_infinity': how, 'fid_infinity_seed': SEED})


def _kid(samples: Features, reference: Reference, logits: Any) -> Measured:
  real, generated = reference.features['pool'], samples['pool']
  size = min(KID_SUBSET_SIZE, len(real), len(generated))
  if size == max(len(real), len(generated)):
    size //= 2  # all subsets would be the same one, and their deviation a rounding error
  found = kernel_distance(generated, real, subsets=KID_SUBSETS, subset_size=size, seed=SEED)
  how: dict[str, Any] = {'kid_subsets': KID_SUBSETS, 'kid_subset_size': size, 'kid_seed': SEED}
  if size < KID_SUBSET_SIZE:
    how['kid_note'] = f'subsets of {size}, for want of {KID_SUBSET_SIZE} images; its deviation does not compare'
  return Measured({'kid': found.mean, 'kid_deviation': found.deviation}, how)


def _mind(samples: Features, reference: Reference, logits: Any) -> Measured:
  found = sliced_wasserstein(samples['pool'], reference.features['pool'], directions=DIRECTIONS, seed=SEED)
  return Measured({'mind': found}, {'mind_directions': DIRECTIONS, 'mind_seed': SEED})


def _inception_score(samples: Features, reference: Reference, logits: Any) -> Measured:
  if logits is None:
    raise ValueError('the Inception Score needs Inception weights with logits')
  found = inception_score(logits(samples['pool']), splits=SPLITS, seed=SEED)
  values = {'inception_score': found.mean, 'inception_score_deviation': found.deviation}
  return Measured(values, {'inception_score_splits': SPLITS, 'inception_score_shuffle_seed': SEED})


def _precision_recall(
  samples: Features, reference: Reference, logits: Any, *, features: str = 'pool', suffix: str = ''
) -> Measured:
  real, radii = reference.features[features], reference.squared_radii(features, NEIGHBOURS)
  found = precision_recall(real, samples[features], neighbours=NEIGHBOURS, real_radii=radii)
  values = {name + suffix: value for name, value in found._asdict().items()}
  return Measured(values, {f'precision_recall{suffix}_neighbours': NEIGHBOURS})


def _density_coverage(
  samples: Features, reference: Reference, logits: Any, *, features: str = 'pool', suffix: str = ''
) -> Measured:
  real, radii = reference.features[features], reference.squared_radii(features, NEIGHBOURS_OF_DENSITY)
  found = density_coverage(real, samples[features], neighbours=NEIGHBOURS_OF_DENSITY, real_radii=radii)
  values = {name + suffix: value for name, value in found._asdict().items()}
  return Measured(values, {f'density_coverage{suffix}_neighbours': NEIGHBOURS_OF_DENSITY})


def _cmmd(samples: Features, reference: Reference, logits: Any) -> Measured:
  if min(len(samples['clip']), len(reference.features['clip'])) < 2:
    raise ValueError('CMMD of one image is not defined; give at least 2 of each')
  how = 'Gaussian kernel of width 10 on unit features, times 1000 (Jayasumana et al. 2024)'
  return Measured({'cmmd': cmmd(samples['clip'], reference.features['clip'])}, {'cmmd': how})


def _clip_score(samples: Features, reference: Reference, logits: Any) -> Measured:
  found = clip_score(samples['clip_image'], samples['clip_text'])
  values = {
    'clip_score': found.hessel,
    'clip_score_percent': found.percent,
    'clip_cosine': found.cosine,
    'clip_cosine_standard_error': found.standard_error,
  }
  return Measured(values, {'clip_score': '2.5 max(cosine, 0) (Hessel et al. 2021); percent: 100 max(cosine, 0)'})


def _memorisation(samples: Features, reference: Reference, logits: Any) -> Measured:
  found = memorisation(reference.features['pool'], samples['pool'])
  values = {'memorised_share': found.share, 'memorisation_ratio': float(np.median(found.ratios))}
  return Measured(values, {'memorised': f'distance to the nearest / second nearest below {THRESHOLD:.3g}'})


def _lpips_diversity(samples: Features, reference: Reference, logits: Any) -> Measured:
  found = samples['lpips'][np.isfinite(samples['lpips'])]
  if len(found) < 2:
    raise ValueError(f'LPIPS diversity of {len(found)} pairs is not defined; give at least 4 images of one size')
  values = {
    'lpips_diversity': float(found.mean()),
    'lpips_diversity_standard_error': float(found.std(ddof=1) / np.sqrt(len(found))),
  }
  return Measured(values, {'lpips_diversity': f'mean over {len(found)} pairs of neighbours, AlexNet'})


_DINOV2: Any = {'features': 'dinov2', 'suffix': '_dinov2'}
METRICS = {
  'fid': Metric(partial(_frechet, name='fid', features='pool'), of_reference='moments', named_by_number=True),
  'sfid': Metric(_sfid, features=('spatial',), of_reference='moments', named_by_number=True),
  'fid_infinity': Metric(_fid_infinity, of_reference='moments'),
  'kid': Metric(_kid),
  'mind': Metric(_mind),
  'inception_score': Metric(_inception_score, of_reference='nothing'),
  'precision_recall': Metric(_precision_recall),
  'density_coverage': Metric(_density_coverage),
  'memorisation': Metric(_memorisation),
  'lpips_diversity': Metric(_lpips_diversity, features=('lpips',), of_reference='nothing'),
  'fd_dinov2': Metric(
    partial(_frechet, name='fd_dinov2', features='dinov2'), ('dinov2',), of_reference='moments', named_by_number=True
  ),
  'precision_recall_dinov2': Metric(partial(_precision_recall, **_DINOV2), ('dinov2',)),
  'density_coverage_dinov2': Metric(partial(_density_coverage, **_DINOV2), ('dinov2',)),
  'cmmd': Metric(_cmmd, ('clip',)),
  'clip_score': Metric(_clip_score, ('clip_image', 'clip_text'), of_reference='nothing'),
}


def check_names(names: Sequence[str]) -> None:
  """Raises ValueError for a metric that is not there."""
  unknown = [name for name in names if name not in METRICS]
  if unknown or not names:
    raise ValueError(f'no metric {unknown[0] if unknown else "is named"!r}; wanted some of {", ".join(METRICS)}')


def needs(names: Sequence[str]) -> set[str]:
  """The features that these metrics need of the samples."""
  return {feature for name in names for feature in METRICS[name].features}


def suffix(num: int) -> str:
  """'' of 50,000 samples or more, else '_2k' or '_500': FIDs of different numbers do not compare."""
  if num >= FULL:
    return ''
  return f'_{num // 1000}k' if num % 1000 == 0 else f'_{num}'


def measure(
  names: Sequence[str],
  samples: Features,
  reference: Reference,
  *,
  logits: Logits | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
  """The numbers of all metrics, and their protocol.

  Raises:
    ValueError: a metric that is not defined for so few images, or for statistics alone.
  """
  check_names(names)
  values, protocol = {}, {}
  for name in names:
    metric = METRICS[name]
    if missing := [feature for feature in metric.features if feature not in samples]:
      raise ValueError(
        f'{name} needs the text of each image' if 'clip_text' in missing else f'{name} needs {missing[0]}'
      )
    if metric.of_reference == 'features' and not reference.features:
      raise ValueError(f'the reference is statistics only; {name} needs its images')
    found = metric.measure(samples, reference, logits)
    count = len(samples[metric.features[0]])
    named = {key + suffix(count): value for key, value in found.values.items()}
    values |= named if metric.named_by_number else found.values
    protocol |= found.protocol
  bad = [name for name, value in values.items() if not np.isfinite(value)]
  if bad:
    raise ValueError(f'{bad[0]} is not a finite number; look at the images it was made of')
  return values, protocol
