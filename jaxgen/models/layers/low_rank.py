"""Kernels with a correction of low rank, multiplied without forming the sum (Hu et al. 2021, "LoRA").

  x (W + s a b) = x W + s (x a) b                                                                      (1)

For a convolution, a is a kernel of W's size with r features and b is 1x1. `Linear` and `Conv` take a `LowRank` wherever
they take an array. The gradient with respect to a and b has no term of W's shape where W itself is not differentiated,
and no second copy of W is made.

In a stack that is scanned over depth each leaf has an axis for the depth in front, `scale` too. Ranks that differ
between layers are padded with zeros, which changes no product.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxgen.models.layers.int8 import Int8, dense
from jaxgen.typing import Array


@struct.dataclass
class LowRank:
  """W + s a b of Eq. 1, over `*i` inputs and `*o` outputs.

  The leaves are arrays, or what stands for them, such as shapes and shardings.

  Attributes:
    base: W, `*i *o`; a convolution's is `h w i o`.
    a: `*i r`; a convolution's is `h w i r`.
    b: `r *o`; a convolution's is `1 1 r o`.
    scale: s, a scalar; in a stack one for each layer, which is how `merged` knows that it is one.
    dropout: rate at which the inputs of a are dropped where the network is given the rng 'dropout', as in training.
  """

  base: Any
  a: Any
  b: Any
  scale: Any
  dropout: float = struct.field(pytree_node=False, default=0.0)


def kernel_param(module: nn.Module, init: nn.initializers.Initializer, shape: tuple[int, ...]) -> Any:
  """The parameter `kernel` of `module`: an array of that shape, made by `init` if it is not there yet, or what stands
  for one, a LowRank or an Int8."""
  kernel = module.get_variable('params', 'kernel')
  if isinstance(kernel, Int8) and kernel.shape == shape:
    return kernel
  if not isinstance(kernel, LowRank):
    return module.param('kernel', init, shape, jnp.float32)
  if kernel.base.shape != shape:
    where = '/'.join(module.path)
    raise ValueError(f'{where}/kernel: the LowRank has a base of shape {kernel.base.shape}; the layer wants {shape}')
  return kernel


def dropped(module: nn.Module, x: Array, kernel: LowRank) -> Array:
  """What a of `kernel` multiplies: `x`, without some of its values in training."""
  if not kernel.dropout or not module.has_rng('dropout'):
    return x
  kept = jax.random.bernoulli(module.make_rng('dropout'), 1 - kernel.dropout, x.shape)
  return jnp.where(kept, x / (1 - kernel.dropout), jnp.zeros((), x.dtype))


def merged(tree: Any) -> Any:
  """The tree with the sum W + s a b, in float32, in place of each LowRank; in the dtype of W."""
  return jax.tree.map(_merged, tree, is_leaf=lambda leaf: isinstance(leaf, LowRank | Int8))


def _merged(leaf: Any) -> Any:
  if not isinstance(leaf, LowRank):
    return dense(leaf, jnp.float32) if isinstance(leaf, Int8) else leaf
  base, a, b = (dense(array, jnp.float32) for array in (leaf.base, leaf.a, leaf.b))
  stacked = leaf.scale.ndim
  if a.ndim + b.ndim > base.ndim + stacked + 2:  # b is a convolution too
    b = b.squeeze((stacked, stacked + 1))

  def add(base: Array, a: Array, b: Array, scale: Array) -> Array:
    return base + scale * jnp.tensordot(a, b, 1)

  for _ in range(stacked):
    add = jax.vmap(add)
  dtype = jnp.float32 if isinstance(leaf.base, Int8) else leaf.base.dtype
  return add(base, a, b, jnp.asarray(leaf.scale)).astype(dtype)
