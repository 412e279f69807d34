"""Retrieval between images and captions: how often the right one is among the nearest.

  recall@k = share of queries whose own partner is among the k candidates of largest cosine             (1)

A candidate as near as the partner counts as nearer: a network that maps all to one point finds nothing.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def recall(
  queries: Float[np.ndarray, 'n d'], candidates: Float[np.ndarray, 'n d'], *, at: Sequence[int] = (1, 5)
) -> dict[int, float]:
  """Eq. 1 for each k of `at`.

  Args:
    queries: features of the queries; the partner of each has the same row.
    candidates: features of the candidates.
    at: the k.

  Raises:
    ValueError: the shapes differ, or there are fewer candidates than the largest k.
  """
  if queries.shape != candidates.shape or len(candidates) < max(at):
    raise ValueError(
      f'queries {queries.shape} and candidates {candidates.shape}: wanted pairs, and {max(at)} of them or more'
    )
  q, c = (np.asarray(x, np.float32) for x in (queries, candidates))
  q, c = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (q, c))
  own = (q * c).sum(axis=1)
  nearer = np.concatenate(
    [(q[i : i + 1000] @ c.T >= own[i : i + 1000, None] - 1e-6).sum(axis=1) - 1 for i in range(0, len(q), 1000)]
  )
  return {k: float(np.mean(nearer < k)) for k in at}
