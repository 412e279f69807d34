"""StyleGAN: adaptive instance normalisation modulates each layer of a synthesis network.

  (1)  AdaIN(x, w) = s(w) (x - mean(x)) / std(x) + t(w),   over the pixels of each channel of each image
  (2)  layer:  x <- AdaIN(a(conv(x) + strength noise + bias), w)
  (3)  the first layer reads a learned constant; sizes double by nearest pixels and [1, 2, 1], together [1, 3, 3, 1]

The mapping, truncation, style mixing and noise are those of layers/styles.py, and the discriminator is ProGAN's. Karras
et al. 2019, "A Style-Based Generator Architecture for Generative Adversarial Networks". Differs: it is trained at its
full size from the start, as StyleGAN2 showed to do as well, rather than grown.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.equalized import EqualizedConv, EqualizedDense, leaky
from jaxgen.models.layers.styles import Noise, StyleGenerator
from jaxgen.models.layers.upfirdn import upsample
from jaxgen.models.stylegan2 import sizes
from jaxgen.typing import Array, Float


def adain(
  x: Float[Array, 'b h w c'], scale: Float[Array, 'b c'], shift: Float[Array, 'b c']
) -> Float[Array, 'b h w c']:
  """Eq. 1; float32 inside."""
  wide = x.astype(jnp.float32)
  centred = wide - wide.mean((1, 2), keepdims=True)
  unit = centred * jax.lax.rsqrt(jnp.square(centred).mean((1, 2), keepdims=True) + 1e-8)
  return (unit * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)


class AdaptiveSynthesis(nn.Module):
  """`(ws, noise) -> images`: one w for each layer, two layers at each size.

  Attributes:
    resolution: height and width of the images, a power of two.
    channels: number of channels of the images.
    base, max_features: features at a size are base / size, at most max_features.
    dtype: dtype of activations; parameters, styles and images are float32.
  """

  resolution: int
  channels: int = 3
  base: int = 8192
  max_features: int = 512
  dtype: Any = jnp.float32

  @property
  def num_styles(self) -> int:
    return 2 * len(sizes(self.resolution))

  @nn.compact
  def __call__(self, ws: Float[Array, 'b l d'], noise: Noise) -> Float[Array, 'b h w c']:
    features = {size: min(self.base // size, self.max_features) for size in sizes(self.resolution)}
    start = self.param('const', nn.initializers.ones_init(), (4, 4, features[4]))
    x = jnp.broadcast_to(start[None], (len(ws), *start.shape)).astype(self.dtype)
    layer = 0
    for size in sizes(self.resolution):
      for number in range(2):
        name = f'b{size}_conv{number}'
        if size > 4 and number == 0:
          x = upsample(x)
        if (size, number) != (4, 0):
          x = EqualizedConv(features[size], bias=False, dtype=self.dtype, name=name)(x)
        x = self._layer(x, ws[:, layer], noise, layer, name)
        layer += 1
    return EqualizedConv(self.channels, 1, dtype=self.dtype, name='to_rgb')(x).astype(jnp.float32)

  def _layer(self, x: Array, w: Array, noise: Noise, layer: int, name: str) -> Array:
    """Eq. 2, after the convolution."""
    zeros, features, square = nn.initializers.zeros_init(), x.shape[-1], x.shape[1:3]
    strength, bias = self.param(f'{name}_noise', zeros, (features,)), self.param(f'{name}_bias', zeros, (features,))
    constant = self.variable(
      'noise', f'{name}_constant', lambda: jax.random.normal(self.make_rng('params'), square)
    ).value
    x += (strength.reshape(1, 1, 1, -1) * noise(layer, constant, len(x))).astype(self.dtype)
    x = leaky(x + bias.reshape(1, 1, 1, -1).astype(self.dtype))
    style = EqualizedDense(2 * features, name=f'{name}_style')(w)
    return adain(x, 1 + style[:, :features], style[:, features:])


def stylegan_generator(
  resolution: int,
  *,
  channels: int = 3,
  base: int = 8192,
  max_features: int = 512,
  dtype: Any = jnp.float32,
  **styles: Any,
) -> StyleGenerator:
  """The generator; `styles` are the other fields of `StyleGenerator`, the rest those of `AdaptiveSynthesis`."""
  return StyleGenerator(AdaptiveSynthesis(resolution, channels, base, max_features, dtype), **styles)
