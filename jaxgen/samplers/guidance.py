"""Classifier-free guidance (Ho & Salimans 2022), as a denoiser made of a denoiser.

  (1)  D_w(x_t, t, c) = D(x_t, t, c) + (w - 1) (D(x_t, t, c) - D(x_t, t, null)),  w = 1: unguided

D is x0 and eps alike: both are affine in each other given x_t, and the weights of Eq. 1 add to 1, so they stay
consistent. All channels are guided. A learned variance is the conditional one's.

Differs from Ho & Salimans: their weight is w - 1. Differs from DiT's released code, which guides the first 3 of the 4
latent channels (kept there for reproducibility); its paper, and this, guides all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Prediction, expand
from jaxgen.typing import Array, Cond, Float


def guided(
  denoise: Callable[..., Prediction],
  null: dict[str, Any],
  scale: float | Float[Array, ''] | Float[Array, ' b'],
  interval: tuple[float, float] | None = None,
) -> Callable[..., Prediction]:
  """Guides a denoiser away from its own unconditional prediction, in one network call for both.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`.
    null: the value of each entry of `cond` that means "no condition", of one image's shape: `{'label': 1000}`.
    scale: w of Eq. 1, one for all or one for each image; the Python number 1 costs no unconditional call.
    interval: guide only while lo <= t <= hi (Kynkäänniemi et al. 2024); the network is called unguided, at half
      the cost, while no image is inside.

  Returns:
    A denoiser, which can be guided, clipped or sampled like any other.
  """
  if isinstance(scale, (int, float)) and scale == 1:
    return denoise

  def guide(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    with_condition, without = _both(denoise, null, x_t, t, cond)
    w = jnp.asarray(scale, jnp.float32)
    w = jnp.repeat(w, len(t) // w.size)  # an outer guidance doubles each image where it is
    if interval is not None:
      w = jnp.where((t >= interval[0]) & (t <= interval[1]), w, 1.0)
    w = expand(w, x_t)
    return Prediction(  # Eq. 1
      x0=with_condition.x0 + (w - 1) * (with_condition.x0 - without.x0),
      eps=with_condition.eps + (w - 1) * (with_condition.eps - without.eps),
      variance=with_condition.variance,
    )

  if interval is None:
    return guide

  def guide_inside(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    inside = jnp.any((t >= interval[0]) & (t <= interval[1]))
    return jax.lax.cond(inside, guide, denoise, x_t, t, cond)

  return guide_inside


def nothing(null: dict[str, Any], cond: Cond) -> Cond:
  """`cond` with the entries that `null` names replaced by their null values; the others stay."""
  return {name: _fill(null[name], value) if name in null else value for name, value in cond.items()}


def _fill(null: Any, value: Array) -> Array:
  null = jnp.asarray(null, value.dtype)
  return jnp.broadcast_to(null.reshape((1,) * (value.ndim - null.ndim) + null.shape), value.shape)


def _both(
  denoise: Callable[..., Prediction], null: dict[str, Any], x_t: Array, t: Array, cond: Cond
) -> tuple[Prediction, Prediction]:
  """The predictions with and without the condition, from one call on twice the batch.

  Image i becomes rows 2i and 2i + 1, so a batch that is sharded over devices is doubled where it lies.
  """

  def pair(a: Array, b: Array) -> Array:
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])

  missing = sorted(set(null) - set(cond))
  if missing:
    raise ValueError(f'guidance needs cond[{missing[0]!r}], got {sorted(cond)}: give it, or set the scale to 1')
  prediction = denoise(pair(x_t, x_t), pair(t, t), jax.tree.map(pair, cond, nothing(null, cond)))
  split = jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), prediction)
  return jax.tree.map(lambda leaf: leaf[:, 0], split), jax.tree.map(lambda leaf: leaf[:, 1], split)
