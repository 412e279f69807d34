"""LPIPS, how far apart two images look: the distance between a classifier's features, weighted by people's judgement.

  f_l(x)   features of layer l, each pixel's divided by its length                        (1)
  d(a, b)  = sum_l mean over pixels of  w_l . (f_l(a) - f_l(b))^2                         (2)

w_l >= 0 was fitted to judgements; the classifiers, VGG16 and AlexNet, are in models/lpips.py. Zhang et al. 2018, "The
Unreasonable Effectiveness of Deep Features as a Perceptual Metric", version 0.1.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxgen.typing import Array, Float

_EPS = 1e-10  # within the square root of a length, so that its gradient is finite where all features are zero


def lpips(features: Sequence[Float[Array, 'b2 _ _ _']], heads: Sequence[Float[Array, ' _']]) -> Float[Array, ' b']:
  """Eq. 2 for each pair.

  Args:
    features: features of a batch of images a, and behind them those of as many images b, from each layer.
    heads: w_l of each layer.
  """
  distance = jnp.zeros(len(features[0]) // 2)
  for x, head in zip(features, heads, strict=True):
    f = x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _EPS)  # Eq. 1
    f_a, f_b = jnp.split(f, 2)
    distance += ((f_a - f_b) ** 2 @ head).mean(axis=(1, 2))
  return distance
