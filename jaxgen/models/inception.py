"""The Inception network that FID is defined on (the TensorFlow graph of 2015-12-05), and its input pipeline.

Rethinking the Inception Architecture (Szegedy et al., 2015) with the graph's own details: average pools leave
the padding out of the mean, the last block pools by maximum, and batch normalisation has no scale and eps 1e-3; it is
folded into the kernels: params = {'Mixed_5b.branch1x1': {'kernel': h w in out, 'bias': out}, ..., perhaps 'fc'}.

An image becomes features as a file would, so that a number does not depend on how the image came here:

  u = round(127.5 (x + 1)) in 0..255          uint8, as in a PNG                               (1)
  v = resize(u) to 299 x 299                  float, not rounded again                         (2)
  f = mean over 8 x 8 of network((v - 128) / 128)                                              (3)
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxgen.typing import Array, Params

SIZE = 299
FEATURES = 2048
SPATIAL_CHANNELS = 7
SPATIAL = 17 * 17 * SPATIAL_CHANNELS

Resize = Callable[[Float[Array, 'b h w c']], Float[Array, 'b 299 299 c']]


def inception_features(
  params: Params, images: Float[Array, 'b h w 3'], *, resize: Resize | None = None
) -> Float[Array, 'b d']:
  """The 2048 features of images in [-1, 1], quantised and resized as files would be (Eqs. 1 to 3)."""
  return network(params, prepare(images, resize=resize or tf1_bilinear))


def rounded(pixels: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
  """Pixels as 8 bits."""
  return jnp.clip(jnp.round(pixels), 0, 255)


def truncated(pixels: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
  """Pixels as ADM's sampling scripts make 8 bits of them; those that are whole but for rounding errors stay."""
  return jnp.clip(jnp.floor(pixels + 1e-3), 0, 255)


def prepare(
  images: Float[Array, 'b h w 3'], *, resize: Resize, to_bits: Callable[[Array], Array] = rounded
) -> Float[Array, 'b 299 299 3']:
  """The network's input for images in [-1, 1] of any size.

  Args:
    images: images of one size.
    resize: `tf1_bilinear`, as FID was published, or `pil_bicubic`, as Clean-FID proposes.
    to_bits: `rounded`, or `truncated` as ADM's samples are.
  """
  pixels = to_bits(127.5 * (images.astype(jnp.float32) + 1))  # Eq. 1
  return (resize(pixels) - 128) / 128  # Eq. 2


def inception_logits(params: Params, features: Float[Array, 'b d']) -> Float[Array, 'b k']:
  """The 1008 logits for the Inception Score: without the bias, as its own code computes them.

  Raises:
    ValueError: the weights' file has no classifier.
  """
  if 'fc' not in params:
    raise ValueError(
      'these Inception weights have no logits, which the Inception Score needs; fetch '
      'pt_inception-2015-12-05-6726825d.pth and `jaxgen weights get inception --from` it'
    )
  return jnp.dot(features, params['fc']['kernel'], precision=lax.Precision.HIGHEST)


def tf1_bilinear(pixels: Float[Array, 'b h w c']) -> Float[Array, 'b 299 299 c']:
  """Bilinear resize of TensorFlow 1: output i is read at i * size / 299, without half-pixel centres or antialiasing."""
  rows, columns = (jnp.asarray(_tf1_matrix(size)) for size in pixels.shape[1:3])
  pixels = jnp.einsum('ih,bhwc->biwc', rows, pixels, precision=lax.Precision.HIGHEST)
  return jnp.einsum('jw,biwc->bijc', columns, pixels, precision=lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=16)
def _tf1_matrix(size: int) -> np.ndarray:
  position = np.arange(SIZE) * (size / SIZE)
  low = np.floor(position).astype(int)
  high = np.minimum(low + 1, size - 1)
  matrix = np.zeros((SIZE, size), np.float32)
  np.add.at(matrix, (np.arange(SIZE), low), 1 - (position - low))
  np.add.at(matrix, (np.arange(SIZE), high), position - low)
  return matrix


def pil_bicubic(pixels: Float[Array, 'b h w c']) -> Float[Array, 'b 299 299 c']:
  """Antialiased bicubic resize as Pillow's on float channels, clipped to 0..255."""
  shape = (pixels.shape[0], SIZE, SIZE, pixels.shape[3])
  resized = jax.image.resize(pixels, shape, 'cubic', antialias=True, precision=lax.Precision.HIGHEST)
  return jnp.clip(resized, 0, 255)


def network(params: Params, x: Float[Array, 'b 299 299 3']) -> Float[Array, 'b 2048']:
  """Features of an input that is already resized and in [-1, 1)."""
  return _outputs(params, x)[0]


def network_with_spatial(params: Params, x: Float[Array, 'b 299 299 3']) -> Float[Array, 'b 4071']:
  """The 2048 features, and behind them the 17 x 17 x 7 of sFID (Nash et al. 2021, arXiv:2103.03841).

  These are the first 7 channels of `mixed_6/conv`, as ADM's evaluation takes them: the graph's `mixed_6` is
  torchvision's Mixed_6d, whose output begins with that convolution's.
  """
  pooled, spatial = _outputs(params, x)
  return jnp.concatenate([pooled, spatial.reshape(len(x), -1)], axis=1)


def _outputs(params: Params, x: Array) -> tuple[Array, Array]:
  conv = functools.partial(_conv, params)
  x = conv('Conv2d_1a_3x3', x, stride=2, padding='VALID')
  x = conv('Conv2d_2a_3x3', x, padding='VALID')
  x = conv('Conv2d_2b_3x3', x)
  x = _max_pool(x, stride=2, padding='VALID')
  x = conv('Conv2d_3b_1x1', x)
  x = conv('Conv2d_4a_3x3', x, padding='VALID')
  x = _max_pool(x, stride=2, padding='VALID')
  for name in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
    x = _mixed_5(conv, name, x)
  x = _mixed_6a(conv, x)
  for name in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d'):
    x = _mixed_6(conv, name, x)
  spatial = x[..., :SPATIAL_CHANNELS]
  x = _mixed_6(conv, 'Mixed_6e', x)
  x = _mixed_7a(conv, x)
  x = _mixed_7(conv, 'Mixed_7b', x, pool=_average_pool)
  x = _mixed_7(conv, 'Mixed_7c', x, pool=functools.partial(_max_pool, stride=1, padding='SAME'))
  return x.mean((1, 2)), spatial


def _mixed_5(conv: Callable, name: str, x: Array) -> Array:
  a = conv(f'{name}.branch1x1', x)
  b = conv(f'{name}.branch5x5_1', x)
  b = conv(f'{name}.branch5x5_2', b)
  c = conv(f'{name}.branch3x3dbl_1', x)
  c = conv(f'{name}.branch3x3dbl_2', c)
  c = conv(f'{name}.branch3x3dbl_3', c)
  d = conv(f'{name}.branch_pool', _average_pool(x))
  return jnp.concatenate([a, b, c, d], -1)


def _mixed_6a(conv: Callable, x: Array) -> Array:
  a = conv('Mixed_6a.branch3x3', x, stride=2, padding='VALID')
  b = conv('Mixed_6a.branch3x3dbl_1', x)
  b = conv('Mixed_6a.branch3x3dbl_2', b)
  b = conv('Mixed_6a.branch3x3dbl_3', b, stride=2, padding='VALID')
  return jnp.concatenate([a, b, _max_pool(x, stride=2, padding='VALID')], -1)


def _mixed_6(conv: Callable, name: str, x: Array) -> Array:
  a = conv(f'{name}.branch1x1', x)
  b = conv(f'{name}.branch7x7_1', x)
  b = conv(f'{name}.branch7x7_2', b)
  b = conv(f'{name}.branch7x7_3', b)
  c = conv(f'{name}.branch7x7dbl_1', x)
  c = conv(f'{name}.branch7x7dbl_2', c)
  c = conv(f'{name}.branch7x7dbl_3', c)
  c = conv(f'{name}.branch7x7dbl_4', c)
  c = conv(f'{name}.branch7x7dbl_5', c)
  d = conv(f'{name}.branch_pool', _average_pool(x))
  return jnp.concatenate([a, b, c, d], -1)


def _mixed_7a(conv: Callable, x: Array) -> Array:
  a = conv('Mixed_7a.branch3x3_1', x)
  a = conv('Mixed_7a.branch3x3_2', a, stride=2, padding='VALID')
  b = conv('Mixed_7a.branch7x7x3_1', x)
  b = conv('Mixed_7a.branch7x7x3_2', b)
  b = conv('Mixed_7a.branch7x7x3_3', b)
  b = conv('Mixed_7a.branch7x7x3_4', b, stride=2, padding='VALID')
  return jnp.concatenate([a, b, _max_pool(x, stride=2, padding='VALID')], -1)


def _mixed_7(conv: Callable, name: str, x: Array, *, pool: Callable) -> Array:
  a = conv(f'{name}.branch1x1', x)
  b = conv(f'{name}.branch3x3_1', x)
  b1, b2 = conv(f'{name}.branch3x3_2a', b), conv(f'{name}.branch3x3_2b', b)
  c = conv(f'{name}.branch3x3dbl_1', x)
  c = conv(f'{name}.branch3x3dbl_2', c)
  c1, c2 = conv(f'{name}.branch3x3dbl_3a', c), conv(f'{name}.branch3x3dbl_3b', c)
  d = conv(f'{name}.branch_pool', pool(x))
  return jnp.concatenate([a, b1, b2, c1, c2, d], -1)


def _conv(params: Params, name: str, x: Array, *, stride: int = 1, padding: str = 'SAME') -> Array:
  y = lax.conv_general_dilated(
    x,
    jnp.asarray(params[name]['kernel']),
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=lax.Precision.HIGHEST,  # bfloat16 or TF32 products would change the features by more than 1e-3
  )
  return jax.nn.relu(y + jnp.asarray(params[name]['bias'])[None, None, None])


def _max_pool(x: Array, *, stride: int, padding: str) -> Array:
  if padding == 'SAME':
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
  return _window(_window(x, jnp.maximum, axis=1, stride=stride), jnp.maximum, axis=2, stride=stride)


def _average_pool(x: Array) -> Array:
  """Mean over 3 x 3, of those that are inside the image."""
  rows, columns = (1 / (3 - np.isin(np.arange(size), (0, size - 1))) for size in x.shape[1:3])
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  total = _window(_window(x, jnp.add, axis=1, stride=1), jnp.add, axis=2, stride=1)
  return total * jnp.asarray(rows[:, None] * columns, x.dtype)[None, :, :, None]


def _window(x: Array, combine: Callable[[Array, Array], Array], *, axis: int, stride: int) -> Array:
  """Combines three neighbours along an axis: as slices, which XLA vectorises on CPUs, unlike `reduce_window`."""
  size = (x.shape[axis] - 3) // stride + 1
  a, b, c = (lax.slice_in_dim(x, i, i + (size - 1) * stride + 1, stride, axis) for i in range(3))
  return combine(combine(a, b), c)
