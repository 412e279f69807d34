"""The Inception Score (Salimans et al., 2016, arXiv:1606.03498): are samples of clear and of many classes?

IS = exp mean_x KL(p(y | x) || mean_x p(y | x)),  its mean and deviation over splits of the samples   (1)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class InceptionScore(NamedTuple):
  mean: float
  deviation: float


def inception_score(logits: Float[np.ndarray, 'n k'], *, splits: int = 10, seed: int | None = 2020) -> InceptionScore:
  """Eq. 1.

  Args:
    logits: logits of the samples.
    splits: parts whose mean and deviation are given.
    seed: seed of the order in which samples are dealt to the parts, as torch-fidelity does: samples that come sorted by
      class make parts of one class each. None keeps the order.

  Raises:
    ValueError: fewer samples than splits.
  """
  n = len(logits)
  if n < splits:
    raise ValueError(f'{n} samples do not make {splits} splits; give more images or fewer splits')
  logits = np.asarray(logits, np.float64)
  if seed is not None:
    logits = logits[np.random.RandomState(seed).permutation(n)]
  logits = logits - logits.max(1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  p = np.exp(log_p)
  scores = []
  for i in range(splits):
    part = slice(i * n // splits, (i + 1) * n // splits)
    divergence = (p[part] * (log_p[part] - np.log(p[part].mean(0, keepdims=True)))).sum(1)
    scores.append(np.exp(divergence.mean()))  # Eq. 1
  return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
