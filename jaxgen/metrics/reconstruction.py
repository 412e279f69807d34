"""Quality of reconstructions: PSNR and SSIM, of images in [-1, 1].

  PSNR = 10 log10(4 / mean (a - b)^2)          decibels; 2 is the range of the values                       (1)
  SSIM = mean of (2 ma mb + c1)(2 vab + c2) / ((ma^2 + mb^2 + c1)(va + vb + c2))                            (2)

with means m, variances v and covariance vab under a Gaussian window of deviation 1.5 and side 11, at every place where
the window fits, c1 = (0.01 range)^2, c2 = (0.03 range)^2, and the mean over places and channels. Wang et al. 2004,
"Image Quality Assessment".
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen.typing import Array, Float

_RANGE = 2.0
_SIDE, _DEVIATION = 11, 1.5
_C1, _C2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2


def psnr(a: Float[Array, 'b h w c'], b: Float[Array, 'b h w c']) -> Float[Array, ' b']:
  """Eq. 1 for each pair; infinite for equal images."""
  error = jnp.mean((a.astype(jnp.float32) - b) ** 2, axis=(1, 2, 3))
  return 10 * jnp.log10(_RANGE**2 / error)


def ssim(a: Float[Array, 'b h w c'], b: Float[Array, 'b h w c']) -> Float[Array, ' b']:
  """Eq. 2 for each pair."""
  if min(a.shape[1:3]) < _SIDE:
    raise ValueError(f'SSIM needs images of at least {_SIDE}x{_SIDE}, got {a.shape[1]}x{a.shape[2]}')
  a, b = a.astype(jnp.float32) + 1, b.astype(jnp.float32) + 1  # from 0, as Eq. 2 means them
  # The values are taken from their images' means: variances then lose nothing to cancellation.
  middle = 0.5 * (a.mean(axis=(1, 2), keepdims=True) + b.mean(axis=(1, 2), keepdims=True))
  x, y = a - middle, b - middle
  mx, my, xx, yy, xy = jnp.split(_window(jnp.concatenate([x, y, x * x, y * y, x * y])), 5)
  va, vb, vab = xx - mx * mx, yy - my * my, xy - mx * my
  ma, mb = mx + middle, my + middle
  value = (2 * ma * mb + _C1) * (2 * vab + _C2) / ((ma**2 + mb**2 + _C1) * (va + vb + _C2))
  return value.mean(axis=(1, 2, 3))


def _window(x: Array) -> Array:
  """Means under the Gaussian window, one axis after the other, where it fits."""
  weights = np.exp(-0.5 * ((np.arange(_SIDE) - _SIDE // 2) / _DEVIATION) ** 2)
  weights = (weights / weights.sum()).astype(np.float32)
  channels = x.shape[-1]
  for shape in ((_SIDE, 1, 1, 1), (1, _SIDE, 1, 1)):
    kernel = jnp.asarray(np.broadcast_to(weights.reshape(shape), (*shape[:3], channels)))
    x = lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=channels,
      precision=lax.Precision.HIGHEST,
    )
  return x
