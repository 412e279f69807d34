"""A linear layer that contracts one axis, forward and in the gradient of its kernel, whatever the shapes around it."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.typing import Array, Float


def biased(y: Float[Array, '...'], bias: Float[Array, '...']) -> Float[Array, '...']:
  """y + 1 b, b over the last axes of y: a product with a column of ones, which compiles to a sum.

  Its gradient is then a product too, several times as fast on a CPU as a reduction.
  """
  rows = y.reshape(-1, *bias.shape)
  return (rows + jnp.tensordot(jnp.ones((len(rows), 1), y.dtype), bias[None], 1)).reshape(y.shape)


class Linear(nn.Module):
  """y = x W + b over the last axes, with the parameters of `nn.DenseGeneral`.

  Differs from `nn.DenseGeneral`, which contracts over (batch, tokens) in the gradient of W: two axes, and XLA's CPU
  backend then transposes and copies the activations first. Of one axis it does not. The axes of the features stay
  apart: a kernel that is split along one of them over a mesh needs no gathering first.

  Attributes:
    features: axes of the output that take the place of the input's last ones.
    inputs: how many of the input's last axes are contracted.
    dtype: of the product; the parameters are float32.
    kernel_init: initialises the kernel seen as a matrix.
  """

  features: int | tuple[int, ...]
  inputs: int = 1
  dtype: Any = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
    features = self.features if isinstance(self.features, tuple) else (self.features,)
    batch, contracted = x.shape[: -self.inputs], x.shape[-self.inputs :]
    rows, columns = math.prod(contracted), math.prod(features)

    def init(key, shape, dtype):
      return self.kernel_init(key, (rows, columns), dtype).reshape(shape)

    kernel = self.param('kernel', init, (*contracted, *features), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros_init(), features, jnp.float32)
    x, kernel, bias = (jnp.asarray(array, self.dtype) for array in (x, kernel, bias))
    x = x.reshape(-1, rows)
    y = jnp.tensordot(x, kernel.reshape(rows, *features), 1)
    return biased(y, bias).reshape(*batch, *features)
