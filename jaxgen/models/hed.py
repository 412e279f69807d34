"""HED: soft edges as people draw them, for control branches (Xie & Tu 2015, "Holistically-Nested Edge Detection").

  f_1 ... f_5 = VGG16's features at the end of each stage, of BGR in [0, 255] minus a mean              (1)
  s_i = resized to the image(side_i f_i),   edges = sigmoid(fuse [s_1, ..., s_5])                       (2)

The weights are in a package (pretrained/hed.py); VGG16 is that of models/lpips.py.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models import lpips
from jaxgen.typing import Array, Float, Params

STAGES = 5
_MEAN = np.array([104.00699, 116.66877, 122.67892], np.float32)  # blue, green and red


def shapes() -> dict[str, tuple[int, ...]]:
  """Shapes of the weights, by `conv_0.{kernel,bias}`, `side_0.{kernel,bias}`, `fuse.{kernel,bias}`."""
  vgg = {name.removeprefix('vgg16.'): shape for name, shape in lpips.shapes().items() if name.startswith('vgg16.conv')}
  widths = [layer.width for layer in lpips.NETWORKS['vgg16'] if layer.compared]
  for i, width in enumerate(widths):
    vgg |= {f'side_{i}.kernel': (1, 1, width, 1), f'side_{i}.bias': (1,)}
  return vgg | {'fuse.kernel': (1, 1, STAGES, 1), 'fuse.bias': (1,)}


def edges(params: Params, images: Float[Array, 'b h w 3']) -> Float[Array, 'b h w']:
  """Eq. 2, in [0, 1], of images in [-1, 1].

  Args:
    params: the weights as a tree.
    images: images of 16 pixels or more a side; HED was
      trained on pictures of some hundred pixels a side: enlarge smaller ones first.
  """
  b, height, width, _ = images.shape
  x = (images[..., ::-1].astype(jnp.float32) + 1) * 127.5 - _MEAN.reshape(1, 1, 1, 3)  # Eq. 1
  sides = []
  for i, features in enumerate(lpips.outputs(params, x)):
    side = features @ params[f'side_{i}']['kernel'][0, 0] + params[f'side_{i}']['bias'].reshape(1, 1, 1, 1)
    sides.append(jax.image.resize(side, (b, height, width, 1), 'linear'))
  fused = jnp.concatenate(sides, axis=-1) @ params['fuse']['kernel'][0, 0] + params['fuse']['bias'].reshape(1, 1, 1, 1)
  return jax.nn.sigmoid(fused[..., 0])
