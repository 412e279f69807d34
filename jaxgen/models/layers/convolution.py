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
gradients (two cores, interleaved, smallest of 4). In groups, Eq. 3 is taken group by group on a CPU: the gradients of
8 groups of 16 features at 16x16, batch 64, take 0.17 s and 7.9 s as JAX derives them (one core). Reverse mode alone is
defined, which GANs' penalties use twice.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.typing import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]
LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def convolve(
  x: Float[Array, 'b h w c'], kernel: Float[Array, 'i j _ o'], *, pad: int = 0, groups: int = 1
) -> Float[Array, 'b _ _ o']:
  """Eq. 1 with `pad` zeros around the image; in `groups`, each of c / groups features to o / groups."""
  if kernel.shape[:2] == (1, 1) and not pad and groups == 1:
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0].astype(x.dtype)).reshape(*x.shape[:3], -1)
  return _convolve(x, kernel.astype(x.dtype), ((pad, pad), (pad, pad)), groups)


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
      y = _convolve(x, part, ((above, above), (before, before)), 1)
      phases.append(jnp.pad(y, ((0, 0), (0, tall - y.shape[1]), (0, wide - y.shape[2]), (0, 0))))
  y = jnp.stack(phases, 3).reshape(batch, tall, wide, 2, 2, features).swapaxes(2, 3)
  y = y.reshape(batch, 2 * tall, 2 * wide, features)
  return y[:, : 2 * height - 2 + rows, : 2 * width - 2 + columns]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, pads: Pads, groups: int) -> Array:
  return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=LAYOUT, feature_group_count=groups)


def _forward(x: Array, kernel: Array, pads: Pads, groups: int) -> tuple[Array, tuple[Array, Array]]:
  return _convolve(x, kernel, pads, groups), (x, kernel)


def _backward(pads: Pads, groups: int, seen: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
  x, kernel = seen
  rows, columns, inputs, _ = kernel.shape
  exchanged = kernel[::-1, ::-1].reshape(rows, columns, inputs, groups, -1).swapaxes(2, 4)
  dx = _convolve(dy, exchanged.reshape(rows, columns, -1, groups * inputs), _others(pads, rows, columns), groups)
  if groups == 1:
    return dx, _of_kernel(x, dy, pads, rows, columns)

  def each(x, dy):
    pairs = zip(jnp.split(x, groups, -1), jnp.split(dy, groups, -1), strict=True)
    return jnp.concatenate([_of_kernel(x, dy, pads, rows, columns) for x, dy in pairs], axis=-1)

  def together(x, dy):
    grouped = partial(lax.conv_general_dilated, x, window_strides=(1, 1), padding=pads, dimension_numbers=LAYOUT)
    return jax.linear_transpose(lambda kernel: grouped(kernel, feature_group_count=groups), kernel)(dy)[0]

  return dx, lax.platform_dependent(x, dy, cpu=each, default=together)  # together, a CPU takes 46 times as long


def _of_kernel(x: Array, dy: Array, pads: Pads, rows: int, columns: int) -> Array:
  """Eq. 3."""
  if dy.shape[1] * dy.shape[2] > x.shape[1] * x.shape[2]:  # XLA lets the smaller one be the kernel
    dk = _convolve(dy.transpose(3, 1, 2, 0), x.transpose(1, 2, 0, 3), _others(pads, rows, columns), 1)
    return dk.transpose(1, 2, 3, 0)[::-1, ::-1]
  return _convolve(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), pads, 1).transpose(1, 2, 0, 3)


def _others(pads: Pads, rows: int, columns: int) -> Pads:
  """Padding of the gradient: the rest of a kernel's reach."""
  (top, bottom), (left, right) = pads
  return (rows - 1 - top, rows - 1 - bottom), (columns - 1 - left, columns - 1 - right)


_convolve.defvjp(_forward, _backward)


def compiler_options() -> dict[str, bool | str]:
  """For `jax.jit` of much convolution: on CPUs Eigen's take half the time of YNNPACK's, jaxlib's default."""
  eigen: dict[str, bool | str] = {'xla_cpu_experimental_ynn_fusion_type': ''}
  if jax.default_backend() != 'cpu':
    return {}
  try:
    jax.jit(lambda x: x).lower(0.0).compile(compiler_options=eigen)
  except jax.errors.JaxRuntimeError:  # a jaxlib without YNNPACK does not know the option
    return {}
  return eigen
