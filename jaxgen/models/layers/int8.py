"""Frozen kernels in eight bits: a quarter of float32's memory for a base that is not trained.

  W = scale q,  q in {-127, ..., 127},  scale of each output = max over its inputs |W| / 127           (1)

Dettmers et al. 2022, "LLM.int8()", without its outliers in 16 bits. `Linear` and `Conv` take an `Int8` wherever they
take an array, also as the base of a LowRank, and form W in the dtype of their product, one layer of a stack at a time.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxgen.typing import Array

_LARGEST = 127


@struct.dataclass
class Int8:
  """W of Eq. 1.

  Attributes:
    values: q, int8, in the shape of W.
    scale: scale of each output, in the shape of W with inputs' axes of 1.
  """

  values: Any
  scale: Any

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of W."""
    return self.values.shape

  @property
  def ndim(self) -> int:
    return len(self.values.shape)


def quantized(kernel: Any, *, layers: int, inputs: int) -> Int8:
  """Eq. 1, on the host.

  Args:
    kernel: W.
    layers: number of axes in front that count layers.
    inputs: number of axes after them that are contracted.
  """
  array = np.asarray(kernel, np.float32)
  largest = np.abs(array).max(axis=tuple(range(layers, layers + inputs)), keepdims=True)
  scale = np.maximum(largest, 1e-12) / np.float32(_LARGEST)
  return Int8(np.rint(array / scale).astype(np.int8), scale)


def dense(kernel: Any, dtype: Any) -> Array:
  """W in this dtype, of an Int8 or of an array."""
  if not isinstance(kernel, Int8):
    return jnp.asarray(kernel, dtype)
  return jnp.asarray(kernel.values, dtype) * jnp.asarray(kernel.scale, dtype)
