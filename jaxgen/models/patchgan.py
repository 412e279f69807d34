"""PatchGAN: a discriminator of all patches of an image, at one or several scales.

Each logit sees a square of the image, of a side that follows from the 4x4 kernels, from the last layer back:

  (1)  r_0 = 1,   r_(i + 1) = stride_i (r_i - 1) + 4

which is 70 for three strided layers and the two others. Isola et al. 2017, "Image-to-Image Translation with
Conditional Adversarial Networks" (pix2pix); also the adversary of VQGAN and of latent diffusion's autoencoders. At
several scales each discriminator, with weights of its own, sees the image halved once more: Wang et al. 2018.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.layers.batch_norm import BatchStatisticsNorm
from jaxgen.models.layers.conv import Conv
from jaxgen.typing import Array, Float, MakeModule

_normal = nn.initializers.normal(0.02)


class PatchGAN(nn.Module):
  """`images -> logits`, one for each patch.

  Attributes:
    width: features of the first layer; each strided layer after it doubles them, up to `max_factor` times.
    layers: strided convolutions; 3 gives patches of 70 pixels.
    max_factor: the widest layer, in widths.
    norm: makes a normalisation for the layers between the first and the last; None for none.
    dtype: dtype of activations; parameters and logits are float32.
  """

  width: int = 64
  layers: int = 3
  max_factor: int = 8
  norm: MakeModule | None = BatchStatisticsNorm
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 1']:
    side = min(images.shape[1:3])
    if side >> self.layers < 3:
      raise ValueError(
        f'images of {images.shape[1]}x{images.shape[2]} are too small for {self.layers} strided layers; '
        f'wanted sides of at least {3 << self.layers}, or fewer layers'
      )
    x = images.astype(self.dtype)
    for layer in range(self.layers + 1):
      features = self.width * min(2**layer, self.max_factor)
      normalised = self.norm is not None and layer > 0
      strides = 2 if layer < self.layers else 1
      x = self._conv(features, strides, use_bias=not normalised, name=f'conv_{layer}')(x)
      if self.norm is not None and layer > 0:
        x = self.norm(name=f'norm_{layer}')(x)
      x = nn.leaky_relu(x, 0.2)
    return self._conv(1, 1, use_bias=True, name='conv_out')(x).astype(jnp.float32)

  def _conv(self, features: int, strides: int, *, use_bias: bool, name: str) -> Conv:
    return Conv(features, 4, strides, padding=1, use_bias=use_bias, kernel_init=_normal, dtype=self.dtype, name=name)


class MultiScalePatchGAN(nn.Module):
  """One PatchGAN for each scale: `images -> logits of each`, the finest first.

  Attributes:
    scales: number of scales; the image is halved from one to the next.
    width, layers, max_factor, norm, dtype: those of each PatchGAN.
  """

  scales: int = 3
  width: int = 64
  layers: int = 3
  max_factor: int = 8
  norm: MakeModule | None = BatchStatisticsNorm
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w c']) -> tuple[Float[Array, 'b _ _ 1'], ...]:
    logits = []
    for scale in range(self.scales):
      if scale:
        images = nn.avg_pool(images, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False)
      net = PatchGAN(self.width, self.layers, self.max_factor, self.norm, self.dtype, name=f'scale_{scale}')
      logits.append(net(images))
    return tuple(logits)
