"""Progressive GAN: networks that are grown from 4x4 or 8x8 up, one size after another.

  (1)  generator      x <- a(conv(a(conv(double(x))))),  a a leaky ReLU, then each pixel to unit mean square
  (2)  image = fade to_rgb(x) + (1 - fade) double(to_rgb of the size before)
  (3)  discriminator  x <- halve(conv(conv(x))), from fade block(from_rgb(image)) + (1 - fade) from_rgb(halve(image))
  (4)  one more channel at 4x4: the standard deviation over a group of images (stylegan2.py, Eq. 6)

`cond['fade']` goes from 0 to 1 at the start of a stage (`gan(scheduled=...)`). Layers are named by their size, so
that the stage of the next size, an Experiment of its own, takes over the parameters of this one. Karras et al. 2018,
"Progressive Growing of GANs for Improved Quality, Stability, and Variation"; the loss is Wasserstein's with a gradient
penalty and `regularizers.drift`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.equalized import EqualizedConv, EqualizedDense, leaky
from jaxgen.models.layers.resample import double, halve
from jaxgen.models.stylegan2 import minibatch_deviation
from jaxgen.typing import Array, Cond, Float, Key


def sizes(resolution: int) -> list[int]:
  """4, 8, ... resolution.

  Raises:
    ValueError: the resolution is no power of two from 4 on.
  """
  if resolution < 4 or resolution & (resolution - 1):
    raise ValueError(f'resolution is {resolution}; ProGAN makes images whose side is a power of two, 4 or more')
  return [2**i for i in range(2, resolution.bit_length())]


def pixel_norm(x: Float[Array, '... c']) -> Float[Array, '... c']:
  """To unit mean square over the last axis."""
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-8)


class ProGANGenerator(nn.Module):
  """Eqs. 1 and 2.

  Attributes:
    resolution: height and width of the images, a power of two.
    channels: number of channels of the images.
    base, max_features: features at a size are base / size, at most max_features.
    dtype: dtype of activations; parameters and images are float32.
  """

  resolution: int
  channels: int = 3
  base: int = 8192
  max_features: int = 512
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, z: Float[Array, 'b z'], cond: Cond, *, keys: Key[Array, ' b'], train: bool = False
  ) -> Float[Array, 'b h w c']:
    features = {size: min(self.base // size, self.max_features) for size in sizes(self.resolution)}
    # The gain of a layer that reads a normal z and not what a leaky ReLU made: He's, over 4.
    x = EqualizedDense(16 * features[4], bias=None, dtype=self.dtype, name='b4_dense')(pixel_norm(z)) / 4
    bias = self.param('b4_bias', nn.initializers.zeros_init(), (features[4],)).astype(self.dtype)
    x = pixel_norm(leaky(x.reshape(-1, 4, 4, features[4]) + bias.reshape(1, 1, 1, -1)))
    before = x
    for size in sizes(self.resolution):
      before, x = x, x if size == 4 else double(x)
      for number in range(2) if size > 4 else (1,):
        conv = EqualizedConv(features[size], dtype=self.dtype, name=f'b{size}_conv{number}')
        x = pixel_norm(leaky(conv(x)))
    image = self._to_rgb(x, self.resolution)
    if self.resolution == 4:
      return image
    return _blend(cond['fade'], image, double(self._to_rgb(before, self.resolution // 2)))  # Eq. 2

  def _to_rgb(self, x: Array, size: int) -> Array:
    return EqualizedConv(self.channels, 1, dtype=self.dtype, name=f'to_rgb_{size}')(x).astype(jnp.float32)


class ProGANDiscriminator(nn.Module):
  """Eqs. 3 and 4.

  Attributes:
    base, max_features: features at a size are base / size, at most max_features.
    group: images whose standard deviation is taken.
    fades: whether the largest resolution is faded in by `cond['fade']`.
    dtype: dtype of activations but the last ones; parameters and logits are float32.
  """

  base: int = 8192
  max_features: int = 512
  group: int = 4
  fades: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w c'], cond: Cond, *, train: bool = False) -> Float[Array, ' b']:
    resolution = images.shape[1]
    features = {size: min(self.base // size, self.max_features) for size in sizes(resolution)}
    x = self._from_rgb(images, features[resolution])
    for size in reversed(sizes(resolution)[1:]):
      x = leaky(EqualizedConv(features[size], dtype=self.dtype, name=f'b{size}_conv0')(x))
      x = halve(leaky(EqualizedConv(features[size // 2], dtype=self.dtype, name=f'b{size}_conv1')(x)))
      if size == resolution and self.fades:
        x = _blend(cond['fade'], x, self._from_rgb(halve(images), features[size // 2]))  # Eq. 3
    x = minibatch_deviation(x.astype(jnp.float32), self.group)
    x = leaky(EqualizedConv(features[4], name='conv')(x))
    x = leaky(EqualizedConv(features[4], 4, same=False, name='dense')(x))[:, 0, 0]
    return EqualizedDense(1, name='out')(x)[:, 0]

  def _from_rgb(self, images: Array, features: int) -> Array:
    return leaky(EqualizedConv(features, 1, dtype=self.dtype, name=f'from_rgb_{images.shape[1]}')(images))


def _blend(fade: Array, new: Array, old: Array) -> Array:
  fade = fade.astype(new.dtype)
  return fade * new + (1 - fade) * old
