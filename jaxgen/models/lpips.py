"""The networks of LPIPS: VGG16 and AlexNet, ImageNet classifiers whose features it compares, and its heads.

params = {network: {'conv_0': {'kernel': h w in out, 'bias': out}, ..., 'head_0': {'kernel': c}, ...}}. The distance
is in metrics/lpips.py. Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition";
Krizhevsky 2014, "One Weird Trick for Parallelizing Convolutional Neural Networks".
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxgen.typing import Array, Float, Params

_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class Layer(NamedTuple):
  """A convolution, after a max pooling where `pool` is set.

  Attributes:
    width: features of its output.
    size: side of its kernel.
    pool: side of the max pooling's window, of stride 2; 0 for none.
    stride, padding: stride and padding of the convolution.
    compared: whether its output is one of the features that are compared.
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


def features(
  params: Params, images: Float[Array, 'b h w 3'], *, network: str = 'vgg16'
) -> tuple[Float[Array, 'b _ _ _'], ...]:
  """The features that are compared, from the first layer to the last, none negative.

  Raises:
    ValueError: there is no such network, or nothing is left of images so small.
  """
  if network not in NETWORKS:
    raise ValueError(f'LPIPS has no network {network!r}; wanted one of {", ".join(NETWORKS)}')
  x = (images.astype(jnp.float32) - _SHIFT.reshape(1, 1, 1, 3)) / _SCALE.reshape(1, 1, 1, 3)
  return outputs(params[network], x, network=network)


def outputs(
  params: Params, x: Float[Array, 'b h w 3'], *, network: str = 'vgg16'
) -> tuple[Float[Array, 'b _ _ _'], ...]:
  """`features` of images as the network itself reads them; `params` are its own."""
  height, width, made = *x.shape[1:3], []
  for i, layer in enumerate(NETWORKS[network]):
    x = _layer(params[f'conv_{i}'], x, layer)
    if not x.size:
      raise ValueError(f'images of {height}x{width} are too small for {network}; enlarge them first')
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
