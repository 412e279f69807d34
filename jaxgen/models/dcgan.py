"""DCGAN: transposed and strided 4x4 convolutions with batch normalisation between them.

  generator      z -> 4x4 -> (up x 2, norm, relu) ... -> up x 2, tanh                                   (1)
  discriminator  (down x 2, norm, leaky relu) ... -> 4x4 -> logit                                       (2)

Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional GANs". The generator's norms keep
running statistics in the collection 'batch_stats', with which it is sampled; the discriminator's are those of the batch
it is given. Labels set scale and bias of the generator's norms, by an embedding that all of them share (Brock et al.
2019), and have a projection in the discriminator (Miyato and Koyama 2018). Where they enter beside z instead, the norms
remove the effect of z: on Fashion-MNIST all images of a class are equal after 100 steps.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.batch_norm import BatchStatisticsNorm
from jaxgen.models.layers.convolution import convolve_transposed
from jaxgen.models.layers.critics import MinibatchDiscrimination, conv, label_projection
from jaxgen.models.layers.linear import Linear, biased
from jaxgen.sharding import Rule
from jaxgen.typing import Array, Cond, Float, Key

_normal = nn.initializers.normal(0.02)
RULES: tuple[Rule, ...] = ((r'(^|/)labels$', (None, None)),)  # whole, as other embeddings of conditions


def doublings(side: int) -> int:
  """How many times 4 is doubled to reach a side.

  Raises:
    ValueError: the side is not 4 times a power of two.
  """
  times = (side // 4).bit_length() - 1
  if times < 1 or 4 << times != side:
    raise ValueError(f'images of side {side}; DCGAN makes and judges sides of 8, 16, 32, ...')
  return times


class _Doubled(nn.Module):
  """A transposed 4x4 convolution of stride 2: each pixel adds its multiple of the kernel around itself."""

  features: int
  bias: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b _ _ o']:
    kernel = self.param('kernel', _normal, (4, 4, x.shape[-1], self.features), jnp.float32)
    y = convolve_transposed(x.astype(self.dtype), kernel)[:, 1:-1, 1:-1]
    if not self.bias:
      return y
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,), jnp.float32)
    return biased(y, bias.astype(self.dtype))


class DCGANGenerator(nn.Module):
  """Eq. 1.

  Attributes:
    resolution: height and width of the images: 8, 16, 32, ...
    channels: number of channels of the images.
    width: features of the layer before the last; each layer before it has twice as many.
    num_classes: labels are 0 to num_classes - 1; 0 for none.
    embedding: size of a label's embedding.
    momentum: momentum of the running statistics.
    dtype: dtype of activations.
  """

  resolution: int
  channels: int = 3
  width: int = 64
  num_classes: int = 0
  embedding: int = 32
  momentum: float = 0.9
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, z: Float[Array, 'b z'], cond: Cond, *, keys: Key[Array, ' b'], train: bool = False
  ) -> Float[Array, 'b h w c']:
    label = None
    if self.num_classes:
      label = self.param('labels', nn.initializers.normal(1.0), (self.num_classes, self.embedding))
      label = jnp.asarray(label)[cond['label']]
    times = doublings(self.resolution)
    features = self.width << (times - 1)
    x = Linear(16 * features, use_bias=False, kernel_init=_normal, dtype=self.dtype, name='in')(z)
    x = x.reshape(-1, 4, 4, features)
    for layer in range(times):
      x = nn.relu(self._norm(x, label, train, f'norm_{layer}'))
      last = layer == times - 1
      out = self.channels if last else features >> (layer + 1)
      x = _Doubled(out, bias=last, dtype=self.dtype, name=f'up_{layer}')(x)
    return jnp.tanh(x.astype(jnp.float32))

  def _norm(self, x: Array, label: Array | None, train: bool, name: str) -> Array:
    """Batch normalisation; with labels, scale and bias are functions of the label's embedding."""

    def near_one(key, shape, dtype=jnp.float32):
      return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)

    own = label is None
    norm = nn.BatchNorm(
      use_running_average=not train,
      momentum=self.momentum,
      use_scale=own,
      use_bias=own,
      scale_init=near_one,
      dtype=self.dtype,
      name=name,
    )
    if own:
      return norm(x)
    affine = Linear(2 * x.shape[-1], kernel_init=_normal, dtype=self.dtype, name=f'{name}_affine')(label)
    scale, bias = jnp.split(affine[:, None, None], 2, axis=-1)
    return norm(x) * (1 + scale) + bias


class DCGANDiscriminator(nn.Module):
  """Eq. 2.

  Attributes:
    width: features of the first layer; each after it has twice as many.
    num_classes: labels are 0 to num_classes - 1; 0 for none.
    norm: whether all layers but the first have a batch norm.
    spectral: spectral normalisation of the convolutions; the usual thing then is `norm=False`.
    kernels: number of kernels of the minibatch discrimination before the logit; 0 for none.
    dtype: dtype of activations.
  """

  width: int = 64
  num_classes: int = 0
  norm: bool = True
  spectral: bool = False
  kernels: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w c'], cond: Cond, *, train: bool = False) -> Float[Array, ' b']:
    x = images.astype(self.dtype)
    for layer in range(doublings(images.shape[1])):
      normed = self.norm and layer > 0
      x = conv(
        self.width << layer,
        size=4,
        strides=2,
        spectral=self.spectral,
        train=train,
        name=f'down_{layer}',
        use_bias=not normed,
        kernel_init=_normal,
        dtype=self.dtype,
      )(x)
      x = BatchStatisticsNorm(name=f'norm_{layer}')(x) if normed else x
      x = nn.leaky_relu(x, 0.2)
    x = x.reshape(len(x), -1).astype(jnp.float32)
    if self.kernels:
      x = jnp.concatenate([x, MinibatchDiscrimination(self.kernels, name='minibatch')(x)], axis=-1)
    logits = Linear(1, kernel_init=_normal, name='out')(x)[:, 0]
    if self.num_classes:
      embedding = self.param('labels', _normal, (self.num_classes, x.shape[-1]))
      logits += label_projection(x, cond['label'], embedding)
    return logits
