"""Array types, and the letters that name the axes of every shape in jaxgen.

  b  batch            h w c  image height, width, channels (NHWC)
  l  tokens           d      width of a token
  n  attention heads  k      conditioning tokens

A shape is written where the array is: `x: Float[Array, 'b h w c']`. The shapes are checked at run time
in the tests, never in a training run.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax import Array
from jaxtyping import Bool, Float, Int, Key, PyTree, UInt8

Cond = dict[str, Array]  # conditioning: {'label': int32 b, 'text': float b k d, ...}, or {}
Batch = dict[str, Array]  # {'image': float b h w c in [-1, 1], 'label': ...}
Params = dict[str, Any]  # one network's Flax parameters
Metrics = dict[str, Array]  # scalars by name
Report = Callable[[str], None]  # takes a line about the progress
MakeModule = Callable[..., nn.Module]  # a module's class, some of its fields bound by `functools.partial`

__all__ = [
  'Array',
  'Batch',
  'Bool',
  'Cond',
  'Float',
  'Int',
  'Key',
  'MakeModule',
  'Metrics',
  'Params',
  'PyTree',
  'Report',
  'UInt8',
]
