"""Several attributes from one network: the logits of each are a part of one vector, in order."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen.typing import Array, Float, Int, Params


def net_logits(net: nn.Module, params: Params, images: Float[Array, 'b h w c'], *, train: bool) -> Float[Array, 'b y']:
  """The logits of all attributes, one after the other."""
  logits: Any = net.apply({'params': params}, images, jnp.zeros(len(images)), {}, train=train)
  return logits.astype(jnp.float32)


def split(logits: Float[Array, 'b y'], sizes: Sequence[int]) -> list[Float[Array, 'b _']]:
  """The logits of each attribute."""
  return jnp.split(logits, [int(end) for end in np.cumsum(sizes)[:-1]], axis=1)


def predict(
  net: nn.Module, params: Params, images: Float[Array, 'b h w c'], *, sizes: Sequence[int]
) -> Int[Array, 'b a']:
  """The most likely value of each attribute."""
  each = split(net_logits(net, params, images, train=False), sizes)
  return jnp.stack([jnp.argmax(logits, axis=-1) for logits in each], axis=1)
