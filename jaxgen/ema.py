"""Averages of the parameters over training.

  ema <- d * ema + (1 - d) * params,    d = decay(step)                                            (1)

`step` counts the optimizer steps done, the one just taken included. A decay is a function of it:

  constant:   d = decay                                                                            (2)
  warm-up:    d = min(decay, (1 + step) / (10 + step)), so that the start is forgotten             (3)
  half-life:  d = 2^(-batch / half_life), half-life in images (Karras et al. 2024, EDM2)           (4)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp


class Average(NamedTuple):
  """A named average.

  Attributes:
    of: the key of `state.params` that is averaged.
    decay: step (int32 scalar) to decay in [0, 1].
  """

  of: str
  decay: Callable


def constant(decay: float) -> Callable:
  """Eq. 2."""
  return lambda step: jnp.float32(decay)


def warmup(decay: float) -> Callable:
  """Eq. 3."""
  return lambda step: jnp.minimum(jnp.float32(decay), (1.0 + step) / (10.0 + step))


def half_life(images: float, *, batch_size: int, ramp: float | None = None) -> Callable:
  """Eq. 4; with `ramp`, the half-life is at most that share of the images seen so far."""

  def decay(step):
    life = jnp.float32(images)
    if ramp is not None:
      life = jnp.minimum(life, ramp * batch_size * jnp.float32(step))
    return jnp.exp2(-batch_size / jnp.maximum(life, 1e-8))

  return decay
