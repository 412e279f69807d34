"""Convolutions whose gradients, of any order, are plain convolutions too: no strides, no dilation, no swapped axes.

With x [b, h, w, c], k [i, j, c, o], * a correlation without strides, and ~ for both axes reversed,

  (1)  y  = x * k
  (2)  dx = dy * ~k'             k' with its channels exchanged
  (3)  dk = (x^T * dy^T)^T       x^T [c, h, w, b], dy^T [h, w, b, o]: sums over the batch; or ~(dy^T * x^T)^T
  (4)  halved:   y = sum over a, b in {0, 1} of x[a::2, b::2] * k[a::2, b::2]
  (5)  doubled:  y[a::2, b::2] = x * ~k[a::2, b::2]

Eqs. 4 and 5 are a convolution of stride 2 and a transposed one, with no product by a zero. XLA's CPU backend has a fast
program for plain convolutions only, and brings others to that form only where they are not in a branch or a loop: the
gradient of a 3x3 kernel, 128 features at 32x32, batch 16, in a branch as a lazy penalty is, took 12.8 s as JAX
derives it and 0.13 s so; outside Eq. 5 takes 0.34 of the time of a convolution of zeros between the pixels, with its
gradients (two cores, interleaved, smallest of 4). Reverse mode alone is defined, which GANs' penalties use twice.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.typing import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(x: Float[Array, 'b h w c'], kernel: Float[Array, 'i j c o'], *, pad: int = 0) -> Float[Array, 'b _ _ o']:
  """Eq. 1 with `pad` zeros around the image."""
  if kernel.shape[:2] == (1, 1) and not pad:
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0].astype(x.dtype)).reshape(*x.shape[:3], -1)
  return _convolve(x, kernel.astype(x.dtype), ((pad, pad), (pad, pad)))


def convolve_down(x: Float[Array, 'b h w c'], kernel: Float[Array, 'i j c o']) -> Float[Array, 'b _ _ o']:
  """Eq. 4: every second value of Eq. 1 in both directions, without padding."""
  height, width = ((side - size) // 2 + 1 for side, size in zip(x.shape[1:3], kernel.shape[:2], strict=True))
  total = jnp.zeros((), x.dtype)
  for a in range(2):
    for b in range(2):
      part = kernel[a::2, b::2]
      if part.size:
        seen = x[:, a::2, b::2][:, : height + part.shape[0] - 1, : width + part.shape[1] - 1]
        total = total + convolve(seen, part)
  return total


def convolve_transposed(x: Float[Array, 'b h w c'], kernel: Float[Array, 'i j c o']) -> Float[Array, 'b _ _ o']:
  """Eq. 5: each pixel adds its multiple of the kernel, of 2x2 values or more, two pixels from the last one's."""
  (batch, height, width, _), (rows, columns, _, features) = x.shape, kernel.shape
  tall, wide = height + (rows - 1) // 2, width + (columns - 1) // 2
  phases = []
  for a in range(2):
    for b in range(2):
      part = kernel[a::2, b::2][::-1, ::-1].astype(x.dtype)
      above, before = part.shape[0] - 1, part.shape[1] - 1
      y = _convolve(x, part, ((above, above), (before, before)))
      phases.append(jnp.pad(y, ((0, 0), (0, tall - y.shape[1]), (0, wide - y.shape[2]), (0, 0))))
  y = jnp.stack(phases, 3).reshape(batch, tall, wide, 2, 2, features).swapaxes(2, 3)
  y = y.reshape(batch, 2 * tall, 2 * wide, features)
  return y[:, : 2 * height - 2 + rows, : 2 * width - 2 + columns]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, pads: Pads) -> Array:
  return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _forward(x: Array, kernel: Array, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
  return _convolve(x, kernel, pads), (x, kernel)


def _backward(pads: Pads, seen: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
  x, kernel = seen
  (top, bottom), (left, right) = pads
  rows, columns = kernel.shape[:2]
  others = (rows - 1 - top, rows - 1 - bottom), (columns - 1 - left, columns - 1 - right)
  dx = _convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3), others)  # Eq. 2
  if dy.shape[1] * dy.shape[2] > x.shape[1] * x.shape[2]:  # XLA lets the smaller one be the kernel
    dk = _convolve(dy.transpose(3, 1, 2, 0), x.transpose(1, 2, 0, 3), others)  # Eq. 3
    return dx, dk.transpose(1, 2, 3, 0)[::-1, ::-1]
  return dx, _convolve(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), pads).transpose(1, 2, 0, 3)


_convolve.defvjp(_forward, _backward)
