"""A small classifier of small images: convolutions, most of which halve, and one product.

  x <- relu(conv(x)) for each width;  logits = W x + b                                                  (1)

Enough for digits and clothes of 28 x 28, at a small part of what a GAN of such images costs.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Cond, Float


class ConvClassifier(nn.Module):
  """The network: `(x, t, cond) -> logits`.

  Attributes:
    num_classes: number of logits.
    widths: features of each convolution.
    strides: stride of each convolution; empty for 2 everywhere.
    dtype: dtype of activations; parameters and logits are float32.
  """

  num_classes: int
  widths: tuple[int, ...] = (32, 64, 128)
  strides: tuple[int, ...] = ()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b y']:
    """Classifies images as they are; t and cond, which every network takes, are not used.

    What each convolution gives, before its relu, leaves in the collection 'hidden' as `layer_I`, if it is mutable.
    """
    strides = self.strides or (2,) * len(self.widths)
    for layer, (width, stride) in enumerate(zip(self.widths, strides, strict=True)):
      x = Conv(width, strides=stride, dtype=self.dtype, name=f'down_{layer}')(x.astype(self.dtype))
      self.sow('hidden', f'layer_{layer}', x)
      x = nn.relu(x)
    return Linear(self.num_classes, kernel_init=nn.initializers.lecun_normal(), name='out')(
      x.reshape(len(x), -1).astype(jnp.float32)
    )  # Eq. 1
