"""Distances between images, for losses: `(frozen, a, b) ->` a number for each image.

(1)  pseudo-Huber  sqrt(|a - b|^2 + c^2) - c,   c = 0.00054 sqrt(D) of D values: iCT, Song & Dhariwal 2024
(2)  perceptual    LPIPS(a, b) of models/lpips.py: Song et al. 2023
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.metrics import lpips as metric
from jaxgen.models import lpips as networks
from jaxgen.processes.process import sum_per_image
from jaxgen.typing import Array, Float, Params

Distance = Callable[[Any, Array, Array], Array]


def pseudo_huber(frozen: Any, a: Float[Array, 'b *d'], b: Float[Array, 'b *d']) -> Float[Array, ' b']:
  """Eq. 1: the length of the difference, smooth where it is small."""
  c = 0.00054 * math.sqrt(a[0].size)
  return jnp.sqrt(sum_per_image((a - b) ** 2) + c**2) - c


def perceptual(judge: str = 'vgg16', *, side: int | None = None) -> Distance:
  """Eq. 2, of images in [-1, 1] of three channels or one; `frozen['lpips']` holds LPIPS's parameters.

  Args:
    judge: the network of LPIPS: 'vgg16' or, at a fraction of the cost, 'alexnet'.
    side: images are first resized to this many pixels a side; its networks were trained on 224. None for no resizing.
  """

  def distance(frozen: Any, a: Float[Array, 'b h w c'], b: Float[Array, 'b h w c']) -> Float[Array, ' b']:
    return lpips(frozen['lpips'], judged(a, side), judged(b, side), network=judge)

  return distance


def lpips(
  params: Params, a: Float[Array, 'b h w 3'], b: Float[Array, 'b h w 3'], *, network: str = 'vgg16'
) -> Float[Array, ' b']:
  """LPIPS of each pair of images in [-1, 1]; gray ones as three equal channels.

  Args:
    params: parameters that `pretrained.lpips.load` returns; one network of them, `{network: ...}`, is enough.
    a, b: the images.
    network: 'alexnet', as papers report it, or 'vgg16', as losses use it.
  """
  # Both images in one batch: each layer reads its kernel once.
  features = networks.features(params, jnp.concatenate([a, b]), network=network)
  heads = [jnp.asarray(params[network][f'head_{i}']['kernel']) for i in range(len(features))]
  return metric.lpips(features, heads)


def judged(images: Float[Array, 'b h w c'], side: int | None) -> Float[Array, 'b s s 3']:
  """Images as LPIPS's networks take them: with three channels, also gray ones, and `side` pixels a side."""
  images = jnp.broadcast_to(images, (*images.shape[:3], 3))
  return images if side is None else jax.image.resize(images, (len(images), side, side, 3), 'bilinear')
