"""A linear layer that contracts one axis, forward and in the gradient of its kernel, whatever the shapes around it."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxgen.models.layers.int8 import dense
from jaxgen.models.layers.low_rank import LowRank, dropped, kernel_param
from jaxgen.typing import Array, Float

DotGeneral = Callable[[Array, Array, Any], Array]  # (x, w, dimension numbers) -> x w, as `jax.lax.dot_general`
_product: contextvars.ContextVar[DotGeneral] = contextvars.ContextVar('product', default=lax.dot_general)
_MATRICES = (((1,), (0,)), ((), ()))  # the last axis of b i with the first of i *o


@contextlib.contextmanager
def products(dot_general: DotGeneral) -> Iterator[None]:
  """Linear layers that are traced within multiply by `dot_general`, such as `quantized.int8_dot_general`."""
  token = _product.set(dot_general)
  try:
    yield
  finally:
    _product.reset(token)


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
  apart: a kernel that is sharded along one of them needs no gathering first. The kernel may be a LowRank
  (layers/low_rank.py).

  Attributes:
    features: axes of the output that take the place of the input's last ones.
    inputs: number of the input's last axes that are contracted.
    use_bias: whether b is added.
    dtype: dtype of the product; the parameters are float32.
    kernel_init: initialises the kernel seen as a matrix.
    bias_init: initialises b.
    dot_general: the product x W, such as a quantised one; None for that of `products`.
  """

  features: int | tuple[int, ...]
  inputs: int = 1
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  dot_general: DotGeneral | None = None

  @nn.compact
  def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
    features = self.features if isinstance(self.features, tuple) else (self.features,)
    batch, contracted = x.shape[: -self.inputs], x.shape[-self.inputs :]
    rows, columns = math.prod(contracted), math.prod(features)

    def init(key, shape, dtype):
      return self.kernel_init(key, (rows, columns), dtype).reshape(shape)

    kernel = kernel_param(self, init, (*contracted, *features))
    y = self._product(jnp.asarray(x, self.dtype).reshape(-1, rows), kernel)
    if self.use_bias:
      bias = self.param('bias', self.bias_init, features, jnp.float32)
      y = biased(y, jnp.asarray(bias, self.dtype))
    return y.reshape(*batch, *features)

  def _product(self, x: Float[Array, 'b i'], kernel: Any) -> Float[Array, 'b *o']:
    """x W, or Eq. 1 of layers/low_rank.py."""
    if not isinstance(kernel, LowRank):
      kernel, product = dense(kernel, self.dtype), self.dot_general or _product.get()
      return product(x, kernel.reshape(x.shape[1], *kernel.shape[self.inputs :]), _MATRICES)
    a, b, scale = (jnp.asarray(array, self.dtype) for array in (kernel.a, kernel.b, kernel.scale))
    low = scale * lax.dot_general(dropped(self, x, kernel), a.reshape(x.shape[1], -1), _MATRICES)  # b r
    return self._product(x, kernel.base) + lax.dot_general(low, b, _MATRICES)
