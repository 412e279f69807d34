"""Time samplers: at which t a batch is trained, `(key, batch_size) -> t`, float32 [b] in [0, 1].

A sampler is a quantile function of uniform numbers u, so each can be drawn independently or stratified:

  (1)  independent  u_i ~ U[0, 1)
  (2)  stratified   u_i = (i + r)/b mod 1, one r ~ U[0, 1) for the batch: each stratum is hit once, which lowers the
                    variance of the loss (Kingma et al. 2021, VDM, appendix I.1)
  (3)  uniform      t = u
  (4)  logit-normal t = sigmoid(mean + std Phi^-1(u))                      (Esser et al. 2024, Eq. 19)
  (5)  discrete     t = (k + 1)/T with k = floor(u T): DDPM's uniform k in 0 ... T-1
  (6)  shift        t' = s t / (1 + (s - 1) t): s > 1 moves time towards noise; sqrt(m/n) carries a schedule from n to m
                    pixels (Esser et al. 2024, Eq. 23). It is also a map of sampling grids.

Differs from JiT, whose t runs the other way: its logit-normal mean -0.8 is mean 0.8 here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.typing import Array, Float, Key

Draw = Callable[[Array, int], Array]  # (key, batch_size) -> uniform numbers
TimeSampler = Callable[[Array, int], Array]  # (key, batch_size) -> t


def independent(key: Key[Array, ''], batch_size: int) -> Float[Array, ' b']:
  """Eq. 1."""
  return jax.random.uniform(key, (batch_size,))


def stratified(key: Key[Array, ''], batch_size: int) -> Float[Array, ' b']:
  """Eq. 2."""
  return (jnp.arange(batch_size) / batch_size + jax.random.uniform(key)) % 1.0


def uniform(*, draw: Draw = independent) -> TimeSampler:
  """Eq. 3."""
  return draw


def logit_normal(mean: float = 0.0, std: float = 1.0, *, draw: Draw = independent) -> TimeSampler:
  """Eq. 4; a positive mean stays nearer to noise."""
  return lambda key, batch_size: jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(draw(key, batch_size)))


def discrete(num_steps: int, *, draw: Draw = independent) -> TimeSampler:
  """Eq. 5: uniform over the grid of a process with `num_steps` steps."""
  return lambda key, batch_size: (jnp.floor(draw(key, batch_size) * num_steps) + 1) / num_steps


def shifted(times: TimeSampler, factor: float) -> TimeSampler:
  """Another sampler's times under Eq. 6."""
  return lambda key, batch_size: jnp.asarray(shift(times(key, batch_size), factor))


def shift(t: Float[Array | np.ndarray, '*s'], factor: float) -> Float[Array | np.ndarray, '*s']:
  """Eq. 6, for training times and sampling grids alike; keeps 0 and 1 where they are."""
  return factor * t / (1 + (factor - 1) * t)
