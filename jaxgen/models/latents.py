"""The contract between an autoencoder and the models of its latents.

  latents = (z - shift) scale,   z ~ N(mean, std^2) of the autoencoder              (1)
  images  = decode(latents / scale + shift)                                         (2)

Shift and scale are numbers for each channel, computed from data, that make latents of mean 0 and variance 1; they are
kept with the autoencoder. `hash` is the hash of its weights: latents that were stored with another hash are refused.
Rombach et al. 2022 scale by one number; Esser et al. 2024 (Stable Diffusion 3) shift as well.

A network needs two methods: `posterior(images) -> (mean, std)`, and `restore(z) -> images`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.typing import Array, Float, Key, Params


class Scaling(NamedTuple):
  """Shift and scale of Eq. 1."""

  shift: Float[np.ndarray, ' z']
  scale: Float[np.ndarray, ' z']


class Autoencoder(NamedTuple):
  """A trained autoencoder.

  Attributes:
    net: a network with the methods `posterior` and `restore`, and the fields `factor`, `channels` (of images),
      `channels_of_latents` and `dtype`.
    params: parameters of the network.
    scaling: scaling of its latents.
    hash: hash of its weights.
  """

  net: Any
  params: Params
  scaling: Scaling
  hash: str

  @property
  def frozen(self) -> dict[str, Any]:
    """The arrays, as an entry of `Experiment.frozen`, for the functions below."""
    return {'params': self.params, 'shift': self.scaling.shift, 'scale': self.scaling.scale}


def unscaled(channels: int) -> Scaling:
  return Scaling(np.zeros(channels, np.float32), np.ones(channels, np.float32))


def posterior(net: nn.Module, frozen: Any, images: Float[Array, 'b h w c']) -> tuple[Array, Array]:
  """Mean and standard deviation of z."""
  made: Any = net.apply({'params': frozen['params']}, images, method='posterior')
  return made


def sample_posterior(
  frozen: Any, mean: Float[Array, 'b h w z'], std: Float[Array, 'b h w z'], keys: Key[Array, ' b']
) -> Float[Array, 'b h w z']:
  """Eq. 1, one sample for each image from its own key."""
  return scaled(frozen, normal(mean, std, keys))


def scaled(frozen: Any, z: Float[Array, 'b h w z']) -> Float[Array, 'b h w z']:
  """Eq. 1 of a given z."""
  shift, scale = (_row(frozen[name]) for name in ('shift', 'scale'))
  return (z - shift) * scale


def normal(
  mean: Float[Array, 'b h w z'], std: Float[Array, 'b h w z'], keys: Key[Array, ' b']
) -> Float[Array, 'b h w z']:
  """z of Eq. 1, one sample for each image from its own key."""
  return mean + std * jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)


def decode(net: nn.Module, frozen: Any, latents: Float[Array, 'b h w z']) -> Float[Array, 'b h2 w2 c']:
  """Eq. 2."""
  z = latents / _row(frozen['scale']) + _row(frozen['shift'])
  made: Any = net.apply({'params': frozen['params']}, z, method='restore')
  return made


def _row(values: Array | np.ndarray) -> Array:
  return jnp.asarray(values).reshape(1, 1, 1, -1)
