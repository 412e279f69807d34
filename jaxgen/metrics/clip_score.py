"""CLIP score: does an image fit its text? In the three scales that are in print.

  cosine   = cos(image features, text features), 0.25 to 0.35 for good images                        (1)
  hessel   = 2.5 max(cosine, 0)        (Hessel et al. 2021, arXiv:2104.08718)                        (2)
  percent  = 100 max(cosine, 0)        (torchmetrics, which takes ViT-L/14)                          (3)

Hessel et al. take ViT-B/32 and put "A photo depicts " before a text.

The model, the words before the text and the resize change the number more than models of images do: they belong in its
protocol.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

HESSEL_PREFIX = 'A photo depicts '


class ClipScore(NamedTuple):
  """Means over images, with the standard error of the cosine's."""

  cosine: float
  hessel: float
  percent: float
  standard_error: float


def clip_score(images: Float[np.ndarray, 'n d'], texts: Float[np.ndarray, 'n d']) -> ClipScore:
  """Eqs. 1 to 3 of the features of images and of each one's text.

  Raises:
    ValueError: not one text for each image, or fewer than two.
  """
  if images.shape != texts.shape or len(images) < 2:
    raise ValueError(f'images {images.shape} and texts {texts.shape}: wanted one text for each of two images or more')
  images, texts = (np.asarray(x, np.float64) for x in (images, texts))
  cosine = (images * texts).sum(1) / np.maximum(np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1), 1e-12)
  positive = np.maximum(cosine, 0).mean()
  error = cosine.std(ddof=1) / np.sqrt(len(cosine))
  return ClipScore(float(cosine.mean()), float(2.5 * positive), float(100 * positive), float(error))
