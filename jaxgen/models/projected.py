"""A discriminator of features: a small network on each map of a frozen backbone.

Projected GANs, Sauer et al. 2021. Each map is halved until its sides are at most four, and each place that is left has
a logit: l(x) + <x, e(label)> / sqrt(d). Spectral norms keep the heads smooth in their features, so that no penalty need
be differentiated through the backbone.

Differs from the paper: maps are not mixed with each other by random projections first, which here would cost more than
the backbone; heads have no batch norm.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen import sharding
from jaxgen.models.layers.critics import conv
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Cond, Float

# The heads, smaller than the maps that they see, are whole on each device.
RULES: tuple[sharding.Rule, ...] = tuple((r'(^|/)head_\d+_', (None,) * rank) for rank in (1, 2, 4))


class ProjectedDiscriminator(nn.Module):
  """`(maps, cond) -> logits`, one for each place of each map.

  Attributes:
    width: features of a head.
    num_classes: labels are 0 to num_classes - 1; 0 for none.
  """

  width: int = 64
  num_classes: int = 0

  @nn.compact
  def __call__(
    self, maps: tuple[Float[Array, 'b _ _ _'], ...], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b n']:
    heads = [self._head(x, cond, train, f'head_{i}') for i, x in enumerate(maps)]
    return jnp.concatenate(heads, axis=1)

  def _head(self, x: Float[Array, 'b h w c'], cond: Cond, train: bool, name: str) -> Float[Array, 'b _']:
    kind = {'spectral': True, 'train': train, 'padding': 'SAME'}
    x = nn.leaky_relu(conv(self.width, size=1, name=f'{name}_in', **kind)(x), 0.2)
    layer = 0
    while layer == 0 or max(x.shape[1:3]) > 4:
      strides = 2 if max(x.shape[1:3]) > 4 else 1
      x = nn.leaky_relu(conv(self.width, size=3, strides=strides, name=f'{name}_conv_{layer}', **kind)(x), 0.2)
      layer += 1
    logits = conv(1, size=1, name=f'{name}_out', **kind)(x)[..., 0]
    if self.num_classes:
      embed = Linear(self.width, use_bias=False, kernel_init=nn.initializers.normal(1.0), name=f'{name}_labels')
      label = embed(jax.nn.one_hot(cond['label'], self.num_classes))
      logits += (x * label[:, None, None]).sum(-1) * jax.lax.rsqrt(jnp.float32(self.width))
    return logits.reshape(len(x), -1)
