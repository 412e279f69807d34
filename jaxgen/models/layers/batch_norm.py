"""Batch normalisation by the statistics of the batch at hand alone, so without any state.

  y = (x - mean) / sqrt(var + eps) * scale + bias,   mean and var of each channel over b, h, w          (1)

A discriminator only ever sees whole batches, of which these are the statistics, so it needs no running ones
(those of `flax.linen.BatchNorm`, for generators). Under jit the batch is the global one: over a mesh the statistics
are those of all devices, with no collective written here. Ioffe and Szegedy 2015.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.typing import Array, Float


class BatchStatisticsNorm(nn.Module):
  """Eq. 1; scales start near 1 (normal, deviation 0.02), as pix2pix's and DCGAN's. Float32 inside."""

  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: Float[Array, '... c']) -> Float[Array, '... c']:
    scale = self.param('scale', lambda key, shape: 1.0 + 0.02 * jax.random.normal(key, shape), x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros_init(), x.shape[-1:])
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes, keepdims=True)
    var = jnp.square(wide - mean).mean(axes, keepdims=True)
    shape = (1,) * len(axes) + scale.shape
    y = (wide - mean) * jax.lax.rsqrt(var + self.eps) * scale.reshape(shape) + bias.reshape(shape)  # Eq. 1
    return y.astype(x.dtype)
