"""Parts of discriminators: spectral normalisation and minibatch discrimination.

  (1)  W / sigma(W),  sigma the largest singular value, by a step of power iteration each time it is trained
  (2)  o_i = mean over j != i of exp(-|M_i - M_j|_1),  M = T f(x): B kernels of C numbers for each image

Miyato et al. 2018, "Spectral Normalization for GANs" (Flax's `SpectralNorm`, whose vectors are in the collection
'batch_stats'). Salimans et al. 2016, "Improved Techniques for Training GANs": an image that is like its neighbours in
the batch is seen to be so. Theirs is the sum, which in large batches outweighs all other features: of 25 Gaussians in
batches of 64 it keeps 19, the mean 24 or 25.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Float

_lecun = nn.initializers.lecun_normal()


def dense(features: int, *, spectral: bool, train: bool, name: str) -> Callable[[Array], Array]:
  """A dense layer, by Eq. 1 if `spectral`."""
  if not spectral:
    return Linear(features, kernel_init=_lecun, name=name)
  return _spectral(Linear(features, kernel_init=_lecun, name=name), train)


def conv(
  features: int, *, size: int, strides: int = 1, spectral: bool = False, train: bool, name: str, **kwargs: Any
) -> Callable[[Array], Array]:
  """A convolution, by Eq. 1 if `spectral`; `kwargs` are other fields of `Conv`."""
  layer = Conv(features, size, strides, name=name, **kwargs)
  return _spectral(layer, train) if spectral else layer


def _spectral(layer: nn.Module, train: bool) -> Callable[[Array], Array]:
  normalised = nn.SpectralNorm(layer, collection_name='batch_stats', name=f'{layer.name}_norm')
  return lambda x: normalised(x, update_stats=train)


class MinibatchDiscrimination(nn.Module):
  """Eq. 2.

  Attributes:
    kernels: B.
    size: C.
  """

  kernels: int = 16
  size: int = 8

  @nn.compact
  def __call__(self, x: Float[Array, 'b d']) -> Float[Array, 'b o']:
    matrix = self.param('matrix', nn.initializers.normal(0.1), (x.shape[-1], self.kernels * self.size))
    m = (x @ matrix).reshape(len(x), self.kernels, self.size).transpose(2, 1, 0)
    distance = sum(jnp.abs(a[:, :, None] - a[:, None, :]) for a in m)  # o b b; a sum over an axis takes 5 times as long
    others = 1.0 - jnp.eye(len(x))
    return (jnp.exp(-distance) * others[None]).sum(-1).T / max(len(x) - 1, 1)  # Eq. 2


def label_projection(x: Float[Array, 'b d'], label: Array, embedding: Array) -> Float[Array, ' b']:
  """<x, embedding of the label> / sqrt(d), the conditional term of a discriminator (Miyato and Koyama 2018)."""
  return jnp.sum(x * jnp.asarray(embedding)[label], axis=-1) * jax.lax.rsqrt(jnp.float32(x.shape[-1]))
