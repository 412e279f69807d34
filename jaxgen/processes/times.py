"""Time samplers: at which t a batch is trained, `(key, batch_size) -> t`, float32 [b] in [0, 1].

A sampler is a quantile function of uniform numbers u, so each can be sampled independently or stratified:

  (1)  independent  u_i ~ U[0, 1)
  (2)  stratified   u_i = (i + r)/b mod 1, one r ~ U[0, 1) for the batch: each stratum is hit once, which lowers the
                    variance of the loss (Kingma et al. 2021, VDM, appendix I.1)
  (3)  uniform      t = u
  (4)  logit-normal t = sigmoid(mean + std Phi^-1(u))                      (Esser et al. 2024, Eq. 19)
  (5)  discrete     t = (k + 1)/T with k = floor(u T): DDPM's uniform k in 0 ... T-1
  (6)  shift        t' = s t / (1 + (s - 1) t): s > 1 moves time towards noise; sqrt(m/n) carries a schedule from n to m
                    pixels (Esser et al. 2024, Eq. 23). It is also a map of sampling grids.

Importance sampling (IDDPM, Nichol & Dhariwal 2021, Eq. 17) samples times where the loss is large, with less weight.
Time has n bins; with L_i the losses that were last seen in bin i, up to ten of them,

  (7)  p_i ~ sqrt(mean L_i^2),   mixed with a uniform share of 0.001;   weight = 1 / (n p_i)

Until every bin has ten, sampling is uniform. The losses are a state that the objective keeps: `Importance`.

Differs from IDDPM: of two images in one bin of one batch, the last is remembered.

Differs from JiT, whose t runs the other way: its logit-normal mean -0.8 is mean 0.8 here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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
  """Another sampler's times under Eq. 6.

  Raises:
    ValueError: the factor is not positive.
  """
  _check(factor)
  return lambda key, batch_size: jnp.asarray(shift(times(key, batch_size), factor))


def shift(t: Float[Array | np.ndarray, '*s'], factor: float) -> Float[Array | np.ndarray, '*s']:
  """Eq. 6, for training times and sampling grids alike; keeps 0 and 1 where they are.

  Raises:
    ValueError: the factor is not positive.
  """
  _check(factor)
  return factor * t / (1 + (factor - 1) * t)


def _check(factor: float) -> None:
  if not factor > 0:
    raise ValueError(f'times are shifted by a factor of {factor:g}; it must be above 0, and 1 leaves them as they are')


class Importance(NamedTuple):
  """A time sampler with a memory; `importance` makes one.

  Attributes:
    init: `() -> memory`, a tree of arrays.
    draw: `(memory, key, batch_size) -> (t, weight)`, the weight to multiply each loss with.
    update: `(memory, t, losses) -> memory`, losses as they are before they are weighted.
  """

  init: Callable[[], Any]
  draw: Callable[[Any, Array, int], tuple[Array, Array]]
  update: Callable[[Any, Array, Array], Any]


_REMEMBERED, _UNIFORM_SHARE = 10, 0.001


def importance(num_steps: int | None = None, *, bins: int = 100) -> Importance:
  """Eq. 7: over the grid of a process with `num_steps` steps, a bin each, or over all times, in `bins` bins."""
  n = num_steps or bins

  def init() -> dict[str, Array]:
    return {'losses': jnp.zeros((n, _REMEMBERED)), 'seen': jnp.zeros(n, jnp.int32)}

  def draw(memory: dict[str, Array], key: Key[Array, ''], batch_size: int) -> tuple[Array, Array]:
    bin_key, place_key = jax.random.split(key)
    size = jnp.sqrt(jnp.mean(memory['losses'] ** 2, axis=1))
    p = (1 - _UNIFORM_SHARE) * size / jnp.maximum(size.sum(), 1e-30) + _UNIFORM_SHARE / n
    p = jnp.where((memory['seen'] >= _REMEMBERED).all(), p, 1 / n)
    i = jax.random.choice(bin_key, n, (batch_size,), p=p)
    place = 1.0 if num_steps else jax.random.uniform(place_key, (batch_size,))
    return (i + place) / n, 1 / (n * p[i])

  def update(memory: dict[str, Array], t: Float[Array, ' b'], losses: Float[Array, ' b']) -> dict[str, Array]:
    position = jnp.ceil(t * n - 1e-3) - 1 if num_steps else jnp.floor(t * n)
    i = jnp.clip(position, 0, n - 1).astype(jnp.int32)
    # Of each bin the last image, counted from 1: writing twice to one place would leave the order to the device.
    last = jnp.zeros(n, jnp.int32).at[i].max(jnp.arange(1, len(t) + 1))
    now = jnp.arange(_REMEMBERED)[None] == (memory['seen'] % _REMEMBERED)[:, None]
    new = jax.lax.stop_gradient(losses)[jnp.maximum(last - 1, 0)][:, None]
    kept = jnp.where(now & (last > 0)[:, None], new, memory['losses'])
    return {'losses': kept, 'seen': memory['seen'] + (last > 0)}

  return Importance(init, draw, update)
