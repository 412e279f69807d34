"""LPIPS, how far apart two images look: the distance between a classifier's features, weighted by people's judgement.

  f_l(x)   features of layer l, each pixel's divided by its length                        (1)
  d(a, b)  = sum_l mean over pixels of  w_l . (f_l(a) - f_l(b))^2                         (2)

w_l >= 0 was fitted to judgements; the classifiers, VGG16 and AlexNet, are ImageNet's. Zhang et al. 2018, "The
Unreasonable Effectiveness of Deep Features as a Perceptual Metric", version 0.1.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxgen.home import fetched, home
from jaxgen.metrics.inception import content_hash
from jaxgen.typing import Array, Float, Params

_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_EPS = 1e-10  # within the square root of a length, so that its gradient is finite where all features are zero


class Layer(NamedTuple):
  """A convolution, with a maximum over a window before it, perhaps.

  Attributes:
    width: features of its output.
    size: side of its kernel.
    pool: side of the window of the maximum before it, moved by 2; 0 for none.
    stride, padding: stride and padding of the convolution.
    compared: whether Eq. 2 has its output.
  """

  width: int
  size: int = 3
  pool: int = 0
  stride: int = 1
  padding: int = 1
  compared: bool = True


def _stage(width: int, plain: int, pool: int = 2) -> tuple[Layer, ...]:
  """The layers of a stage of VGG16; the last is compared."""
  first, *more = (Layer(width, compared=False),) * plain
  return first._replace(pool=pool), *more, Layer(width)


NETWORKS = {
  'vgg16': (*_stage(64, 1, pool=0), *_stage(128, 1), *_stage(256, 2), *_stage(512, 2), *_stage(512, 2)),
  'alexnet': (
    Layer(64, 11, stride=4, padding=2),
    Layer(192, 5, pool=3, padding=2),
    Layer(384, pool=3),
    Layer(256),
    Layer(256),
  ),
}


class Lpips(NamedTuple):
  """The weights of both networks.

  Attributes:
    params: `{network: {'conv_0': {'kernel', 'bias'}, ..., 'head_0': {'kernel'}, ...}}`.
    hash: hash of all of them.
  """

  params: Params
  hash: str


def default_path() -> Path:
  return fetched(home() / 'weights' / 'lpips.safetensors')


def load(path: Path | None = None) -> Lpips:
  """The weights that `jaxgen weights get lpips` stored.

  Raises:
    FileNotFoundError: they are not there.
    ValueError: the file is damaged.
  """
  import safetensors

  path = path or default_path()
  if not path.exists():
    raise FileNotFoundError(f'{path}: no LPIPS weights; get them with `jaxgen weights get lpips`')
  try:
    with safetensors.safe_open(os.fspath(path), framework='np') as file:
      tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
      stored_hash = (file.metadata() or {}).get('hash')
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} is damaged ({error}); delete it and `jaxgen weights get lpips`') from error
  if stored_hash is None or content_hash(tensors) != stored_hash:
    raise ValueError(f'{path} is damaged (wrong hash); delete it and `jaxgen weights get lpips`')
  return Lpips(tree(tensors), stored_hash)


def shapes() -> dict[str, tuple[int, ...]]:
  """Shapes of the weights, by `NETWORK.conv_0.{kernel,bias}` and `NETWORK.head_0.kernel`."""
  made = {}
  for network, layers in NETWORKS.items():
    for i, (inputs, layer) in enumerate(zip((3, *(layer.width for layer in layers)), layers, strict=False)):
      made[f'{network}.conv_{i}.kernel'] = (layer.size, layer.size, inputs, layer.width)
      made[f'{network}.conv_{i}.bias'] = (layer.width,)
    compared = [layer.width for layer in layers if layer.compared]
    made |= {f'{network}.head_{i}.kernel': (width,) for i, width in enumerate(compared)}
  return made


def tree(tensors: Mapping[str, Any]) -> Params:
  """`network.layer.parameter` as a tree."""
  params: Params = {}
  for name, tensor in tensors.items():
    network, layer, parameter = name.split('.')
    params.setdefault(network, {}).setdefault(layer, {})[parameter] = tensor
  return params


def lpips(
  params: Params, a: Float[Array, 'b h w 3'], b: Float[Array, 'b h w 3'], *, network: str = 'vgg16'
) -> Float[Array, ' b']:
  """Eq. 2 for each pair of images in [-1, 1]; gray ones as three equal channels.

  Args:
    params: parameters that `load` returns; one network of them, `{network: ...}`, is enough.
    a, b: the images.
    network: 'alexnet', as papers report it, or 'vgg16', as losses use it.
  """
  # Both images in one batch: each layer reads its kernel once.
  distance = jnp.zeros(len(a))
  for head, x in enumerate(features(params, jnp.concatenate([a, b]), network=network)):
    f = x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _EPS)  # Eq. 1
    f_a, f_b = jnp.split(f, 2)
    judged = (f_a - f_b) ** 2 @ params[network][f'head_{head}']['kernel']  # b h w
    distance += judged.mean(axis=(1, 2))
  return distance


def features(
  params: Params, images: Float[Array, 'b h w 3'], *, network: str = 'vgg16'
) -> tuple[Float[Array, 'b _ _ _'], ...]:
  """The features that are compared, from the first layer to the last, none negative; arguments as of `lpips`.

  Raises:
    ValueError: there is no such network, or nothing is left of images so small.
  """
  if network not in NETWORKS:
    raise ValueError(f'LPIPS has no network {network!r}; wanted one of {", ".join(NETWORKS)}')
  x = (images.astype(jnp.float32) - _SHIFT.reshape(1, 1, 1, 3)) / _SCALE.reshape(1, 1, 1, 3)
  made = []
  for i, layer in enumerate(NETWORKS[network]):
    x = _layer(params[network][f'conv_{i}'], x, layer)
    if not x.size:
      raise ValueError(f'images of {images.shape[1]}x{images.shape[2]} are too small for {network}; enlarge them first')
    if layer.compared:
      made.append(x)
  return tuple(made)


def _layer(weights: Params, x: Array, layer: Layer) -> Array:
  if layer.pool:
    x = nn.max_pool(x, (layer.pool,) * 2, (2, 2))
  padding = ((layer.padding,) * 2,) * 2
  x = lax.conv_general_dilated(
    x, weights['kernel'], (layer.stride,) * 2, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  return nn.relu(x + weights['bias'].reshape(1, 1, 1, -1))
