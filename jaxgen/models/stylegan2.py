"""StyleGAN2: a generator whose convolutions a learned latent w modulates, and a residual discriminator.

  (1)  w = f(z): layers/styles.py
  (2)  w'_ijk = s_i w_ijk,  s = A(w)                              modulation of a convolution's inputs
  (3)  w''_ijk = w'_ijk / sqrt(sum_i,k w'_ijk^2 + 1e-8)           demodulation of its outputs
  (4)  image = sum over sizes of upsample^n(to_rgb(x))            skip connections
  (5)  D's block: x <- (conv(conv(x)) + skip(x)) / sqrt(2),  halved
  (6)  one more channel at 4x4: the standard deviation over a group of images, averaged

Eqs. 2 and 3 scale the activations before and after one convolution that all images share; the same numbers as one
convolution for each image, without its grouped kernels. Truncation moves w towards its mean, which the generator keeps
in the collection 'statistics'; constant noise images are in 'noise'. Karras et al. 2020, "Analyzing and Improving the
Image Quality of StyleGAN"; sizes and labels as in Karras et al. 2020, "Training GANs with Limited Data".
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.convolution import convolve
from jaxgen.models.layers.equalized import EqualizedConv, EqualizedDense, convolve_up, leaky
from jaxgen.models.layers.linear import biased
from jaxgen.models.layers.styles import Mapping, Noise, StyleGenerator
from jaxgen.models.layers.upfirdn import upsample
from jaxgen.typing import Array, Cond, Float


def sizes(resolution: int) -> list[int]:
  """4, 8, ... resolution.

  Raises:
    ValueError: the resolution is no power of two from 8 on.
  """
  if resolution < 8 or resolution & (resolution - 1):
    raise ValueError(f'resolution is {resolution}; StyleGAN2 makes images whose side is a power of two, 8 or more')
  return [2**i for i in range(2, resolution.bit_length())]


class StyledConv(nn.Module):
  """A modulated 3x3 convolution with noise, bias and activation.

  Attributes:
    features: number of output features.
    layer: its number, for the noise.
    size: side of the output.
    up: doubles the image.
    clamp: limit of the output, for half precision.
    dtype: dtype of activations.
  """

  features: int
  layer: int
  size: int
  up: bool = False
  clamp: float | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], w: Float[Array, 'b d'], noise: Noise) -> Float[Array, 'b _ _ o']:
    style = EqualizedDense(x.shape[-1], bias=1.0, name='affine')(w)
    kernel = self.param('kernel', jax.random.normal, (3, 3, x.shape[-1], self.features))
    power = jnp.square(style) @ jnp.square(kernel).sum((0, 1))
    scale = jax.lax.rsqrt(power + 1e-8).astype(self.dtype)  # Eq. 3
    x = x.astype(self.dtype) * style[:, None, None].astype(self.dtype)  # Eq. 2
    x = convolve_up(x, kernel) if self.up else convolve(x, kernel, pad=1)
    x = x * scale[:, None, None]
    strength = self.param('noise_strength', nn.initializers.zeros_init(), ())
    square = (self.size, self.size)
    constant = self.variable('noise', 'constant', lambda: jax.random.normal(self.make_rng('params'), square)).value
    x += (strength * noise(self.layer, constant, len(x))).astype(self.dtype)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    return leaky(biased(x, jnp.asarray(bias, self.dtype)), clamp=self.clamp)


class ToRGB(nn.Module):
  """A modulated 1x1 convolution to an image, without demodulation; float32 out."""

  channels: int
  clamp: float | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], w: Float[Array, 'b d']) -> Float[Array, 'b h w o']:
    style = EqualizedDense(x.shape[-1], bias=1.0, name='affine')(w) / math.sqrt(x.shape[-1])
    kernel = self.param('kernel', jax.random.normal, (1, 1, x.shape[-1], self.channels))
    y = convolve(x.astype(self.dtype) * style[:, None, None].astype(self.dtype), kernel)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.channels,))
    y = biased(y.astype(jnp.float32), jnp.asarray(bias))
    return y if self.clamp is None else jnp.clip(y, -self.clamp, self.clamp)


class Synthesis(nn.Module):
  """`(ws, noise) -> images`: one w for each convolution, and one more for the last image.

  Attributes:
    resolution: height and width of the images, a power of two.
    channels: number of channels of the images.
    base, max_features: features at a size are base / size, at most max_features.
    clamp: limit of activations, for half precision.
    dtype: dtype of activations; parameters, styles and images are float32.
  """

  resolution: int
  channels: int = 3
  base: int = 32768
  max_features: int = 512
  clamp: float | None = None
  dtype: Any = jnp.float32

  @property
  def num_styles(self) -> int:
    return 2 * len(sizes(self.resolution))

  @nn.compact
  def __call__(self, ws: Float[Array, 'b l d'], noise: Noise) -> Float[Array, 'b h w c']:
    image, layer = None, 0
    features = {size: min(self.base // size, self.max_features) for size in sizes(self.resolution)}
    start = self.param('const', jax.random.normal, (4, 4, features[4]))
    x = jnp.broadcast_to(start[None], (len(ws), *start.shape)).astype(self.dtype)
    shared = {'clamp': self.clamp, 'dtype': self.dtype}
    for size in sizes(self.resolution):
      for number in range(2) if size > 4 else (1,):
        conv = StyledConv(features[size], layer, size, up=number == 0, name=f'b{size}_conv{number}', **shared)
        x = conv(x, ws[:, layer], noise)
        layer += 1
      rgb = ToRGB(self.channels, name=f'b{size}_to_rgb', **shared)(x, ws[:, layer])
      image = rgb if image is None else upsample(image) + rgb  # Eq. 4
    assert image is not None
    return image


def stylegan2_generator(
  resolution: int,
  *,
  channels: int = 3,
  base: int = 32768,
  max_features: int = 512,
  clamp: float | None = None,
  dtype: Any = jnp.float32,
  **styles: Any,
) -> StyleGenerator:
  """The generator; `styles` are the other fields of `StyleGenerator`, the rest those of `Synthesis`."""
  return StyleGenerator(Synthesis(resolution, channels, base, max_features, clamp, dtype), **styles)


class DiscriminatorBlock(nn.Module):
  """Eq. 5."""

  features: int
  clamp: float | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b _ _ o']:
    skip = EqualizedConv(self.features, 1, down=True, bias=False, dtype=self.dtype, name='skip')(x)
    x = leaky(EqualizedConv(x.shape[-1], dtype=self.dtype, name='conv0')(x), clamp=self.clamp)
    x = EqualizedConv(self.features, down=True, dtype=self.dtype, name='conv1')(x)
    half = math.sqrt(0.5)
    return leaky(x, half, self.clamp) + skip * jnp.asarray(half, x.dtype)


def minibatch_deviation(x: Float[Array, 'b h w c'], group: int) -> Float[Array, 'b h w c1']:
  """Eq. 6; image i is in a group with i + b / group, i + 2 b / group, ...

  Raises:
    ValueError: the batch does not divide into groups.
  """
  group = min(group, len(x))
  if len(x) % group:
    raise ValueError(f'a batch of {len(x)} does not divide into groups of {group}; change the batch size or the group')
  y = x.astype(jnp.float32).reshape(group, -1, *x.shape[1:])
  deviation = jnp.sqrt(jnp.square(y - y.mean(0, keepdims=True)).mean(0) + 1e-8).mean((1, 2, 3))
  channel = jnp.tile(deviation, group).astype(x.dtype)
  return jnp.concatenate([x, jnp.broadcast_to(channel[:, None, None, None], (*x.shape[:3], 1))], axis=-1)


class StyleGAN2Discriminator(nn.Module):
  """The discriminator: `(images, cond) -> logits`.

  Attributes:
    num_classes: labels are 0 to num_classes - 1, and the logit is a product with a label's embedding; 0 for none.
    layers: number of layers of the label's mapping.
    base, max_features: features at a size are base / size, at most max_features.
    group: images whose standard deviation is taken (Eq. 6).
    clamp: limit of activations, for half precision.
    dtype: dtype of activations but the last ones; parameters and logits are float32.
  """

  num_classes: int = 0
  layers: int = 8
  base: int = 32768
  max_features: int = 512
  group: int = 4
  clamp: float | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w c'], cond: Cond, *, train: bool = False) -> Float[Array, ' b']:
    resolution = images.shape[1]
    features = {size: min(self.base // size, self.max_features) for size in sizes(resolution)}
    x = EqualizedConv(features[resolution], 1, dtype=self.dtype, name='from_rgb')(images)
    x = leaky(x, clamp=self.clamp)
    for size in reversed(sizes(resolution)[1:]):
      x = DiscriminatorBlock(features[size // 2], self.clamp, self.dtype, name=f'b{size}')(x)
    x = minibatch_deviation(x.astype(jnp.float32), self.group)
    x = leaky(EqualizedConv(features[4], name='conv')(x), clamp=self.clamp)
    x = leaky(EqualizedConv(features[4], 4, same=False, name='dense')(x))[:, 0, 0]
    if not self.num_classes:
      return EqualizedDense(1, name='out')(x)[:, 0]
    embedding = Mapping(features[4], self.layers, self.num_classes, name='mapping')(None, cond)
    return jnp.sum(EqualizedDense(features[4], name='out')(x) * embedding, axis=-1) / math.sqrt(features[4])
