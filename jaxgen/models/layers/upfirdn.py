"""Upsample, FIR filter, downsample: how GANs change an image's size without aliasing.

Along each axis, zeros between the pixels, zeros around them, the filter, and every `down`-th value of the result:

  u[up i] = x[i],  0 elsewhere;     y[p] = sum_k f[n - 1 - k] u[down p + k - pad]                      (1)

A filter of two dimensions is a sum of separable ones, by its singular values; [1, 3, 3, 1] is one. Karras et al. 2019,
2020 (StyleGAN, StyleGAN2), where this is a CUDA kernel.

Here each axis is a sum of shifted slices, one for each tap, which XLA fuses into one loop; the zeros of `up` are never
made, since output p sees only the taps of its own phase. Other forms were measured on two loaded cores (16 images of
16x16x128, [1, 3, 3, 1], interleaved, smallest of 5). Enlarging took 18 ms by slices, 39 as a product with a matrix, 310
as a convolution of one channel, 1,936 and 2,852 as separable and square depthwise convolutions; the filter alone 2 ms
by slices, 486 depthwise. Fused into the 3x3 convolution beside it, as kernels of 6x6, it took 336 ms up and 62 down,
against 68 and 11 one after the other; as a 3x3 convolution for each of the four phases, 175 up.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen.typing import Array, Float

LOW_PASS = (1.0, 3.0, 3.0, 1.0)


def upfirdn2d(
  x: Float[Array, 'b h w c'],
  taps: Sequence[float] | np.ndarray,
  *,
  up: int = 1,
  down: int = 1,
  pad: Sequence[int] = (0, 0, 0, 0),
  gain: float = 1.0,
) -> Float[Array, 'b _ _ c']:
  """Eq. 1 over rows and columns.

  Args:
    x: images.
    taps: coefficients of the filter, along one axis or two; not normalised.
    up, down: factors.
    pad: zeros before and after the columns, then the rows (of the enlarged image); negative ones crop.
    gain: multiplies the result.
  """
  left, right, top, bottom = pad
  total = None
  for rows, columns in _separable(np.asarray(taps, np.float64)):
    y = _axis(x, rows * gain, up=up, down=down, pad=(top, bottom), axis=1)
    y = _axis(y, columns, up=up, down=down, pad=(left, right), axis=2)
    total = y if total is None else total + y
  assert total is not None
  return total


def blur(
  x: Float[Array, 'b h w c'], taps: Sequence[float] = LOW_PASS, *, pad: tuple[int, int], gain: float = 1.0
) -> Float[Array, 'b _ _ c']:
  """The filter, of sum 1, on the grid of the image; `pad` before and after both axes."""
  return upfirdn2d(x, _normal(taps), pad=pad * 2, gain=gain)


def upsample(x: Float[Array, 'b h w c'], taps: Sequence[float] = LOW_PASS) -> Float[Array, 'b _ _ c']:
  """Twice the side."""
  n = len(taps)
  return upfirdn2d(x, _normal(taps), up=2, pad=((n + 1) // 2, (n - 2) // 2) * 2, gain=4.0)


def downsample(x: Float[Array, 'b h w c'], taps: Sequence[float] = LOW_PASS) -> Float[Array, 'b _ _ c']:
  """Half the side."""
  n = len(taps)
  return upfirdn2d(x, _normal(taps), down=2, pad=((n - 1) // 2, (n - 2) // 2) * 2)


def _normal(taps: Sequence[float]) -> np.ndarray:
  return np.asarray(taps, np.float64) / sum(taps)


def _separable(taps: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
  """Pairs of filters over rows and columns whose products add up to `taps`."""
  if taps.ndim == 1:
    return [(taps, taps)]
  u, s, v = np.linalg.svd(taps)
  rank = int((s > 1e-7 * s[0]).sum())
  return [(u[:, i] * s[i], v[i]) for i in range(max(rank, 1))]


def _axis(x: Array, taps: np.ndarray, *, up: int, down: int, pad: tuple[int, int], axis: int) -> Array:
  """Eq. 1 along one axis."""
  size, flipped = x.shape[axis], taps[::-1]
  length = size * up + sum(pad) - len(taps) + 1  # before every `down`-th is kept
  if length < 1:
    raise ValueError(f'{len(taps)} taps do not fit an axis of {size} pixels, enlarged {up} times and padded by {pad}')
  if up == 1:
    return _taps(x, [(k - pad[0], flipped[k]) for k in range(len(taps))], -(-length // down), axis, stride=down)
  phases = []
  for phase in range(up):  # outputs p = up q + phase see u at up q + phase + k - pad, where that is a multiple of up
    offsets = [(k, phase + k - pad[0]) for k in range(len(taps))]
    seen = [(offset // up, flipped[k]) for k, offset in offsets if offset % up == 0]
    phases.append(_taps(x, seen, -(-length // up), axis))
  y = jnp.stack(phases, axis=axis + 1)
  y = y.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
  return lax.slice_in_dim(y, 0, length, stride=down, axis=axis)


def _taps(x: Array, taps: list[tuple[int, float]], length: int, axis: int, stride: int = 1) -> Array:
  """y[q] = sum of weight * x[stride q + offset] over the taps (offset, weight); zeros outside."""
  first = min([offset for offset, _ in taps], default=0)
  last = max([offset for offset, _ in taps], default=0) + stride * (length - 1)
  low, high = max(0, -first), max(0, last - x.shape[axis] + 1)
  padding = [(0, 0)] * x.ndim
  padding[axis] = (low, high)
  padded = jnp.pad(x, padding)
  shape = [*x.shape]
  shape[axis] = length
  total = jnp.zeros(shape, x.dtype)
  for offset, weight in taps:
    begin = offset + low
    part = lax.slice_in_dim(padded, begin, begin + stride * (length - 1) + 1, stride=stride, axis=axis)
    total += jnp.asarray(weight, x.dtype) * part
  return total
