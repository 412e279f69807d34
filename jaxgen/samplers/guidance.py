"""Guidance: denoisers made of denoisers, so that each can be guided, clipped or sampled again.

  (1)  D_w(x_t, t, c) = D(x_t, t, c) + (w - 1) (D(x_t, t, c) - D'(x_t, t, c')),  w = 1: unguided

Classifier-free guidance (Ho & Salimans 2022) has D' = D and c' = null, or a negative condition; autoguidance (Karras et
al. 2024) has a weaker network D' and c' = c. D is x0 and eps alike: both are affine in each other given x_t, and the
weights of Eq. 1 add to 1, so they stay consistent. All channels are guided. A learned variance is that of D.

Eq. 1 is the default of `combine`, which others replace, for whichever D':

  (2)  rescaled   x0' = (f std(x0 of D)/std(x0 of D_w) + 1 - f) x0 of D_w                 (Lin et al. 2024, Eqs. 15, 16)
  (3)  zero_star  u_w = u + (w - 1) (u - s u'),   s = <u, u'>/<u', u'>,   u the velocity   (CFG-Zero*, Fan et al. 2025)

Classifier guidance (Dhariwal & Nichol 2021) samples p(x) p(c | x)^(w - 1), so w = 1 is unguided as well:

  (4)  eps_w = eps - (w - 1) sigma g,   x0_w = x0 + (w - 1) sigma^2/alpha g,   g the gradient of log p(c | x_t) in x_t

Differs from Ho & Salimans: their weight is w - 1. Differs from DiT's released code, which guides the first 3 of the 4
latent channels (kept there for reproducibility); its paper, and this, guides all. Differs from Lin et al.: Eq. 2 is of
x0, whose contrast it mends, whatever the network predicts. Differs from Dhariwal & Nichol: their scale is w - 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.processes import parameterisation
from jaxgen.processes.process import Prediction, Process, expand
from jaxgen.typing import Array, Cond, Float

Scale = float | Float[Array, ''] | Float[Array, ' b']
Combine = Callable[[Prediction, Prediction, Array, Array, Array], Prediction]  # (D, D', w, x_t, t) -> D_w


def extrapolated(
  good: Prediction,
  bad: Prediction,
  w: Float[Array, 'b ...'],
  x_t: Float[Array, 'b ...'],
  t: Float[Array, ' b'],
) -> Prediction:
  """Eq. 1."""
  return good._replace(x0=good.x0 + (w - 1) * (good.x0 - bad.x0), eps=good.eps + (w - 1) * (good.eps - bad.eps))


def rescaled(process: Process, amount: float = 0.7, combine: Combine = extrapolated) -> Combine:
  """Gives each guided image the contrast of the unguided one, against overexposure; `amount` is f of Eq. 2."""
  of_x0 = parameterisation.x0(process)

  def rescale(good: Prediction, bad: Prediction, w: Array, x_t: Array, t: Array) -> Prediction:
    x0 = combine(good, bad, w, x_t, t).x0
    std = lambda x: jnp.std(x, axis=tuple(range(1, x.ndim)))  # noqa: E731
    ratio = std(good.x0) / jnp.maximum(std(x0), 1e-6)
    x0 = expand(amount * ratio + 1 - amount, x0) * x0  # Eq. 2
    return of_x0.predict(x0, x_t, t)._replace(variance=good.variance)

  return rescale


def zero_star(process: Process, zero_init: float = 0.0) -> Combine:
  """CFG-Zero*: the bad velocity is fitted to the good one before it is subtracted.

  Args:
    process: whose velocity.
    zero_init: in [0, 1], the first share of time, from t = 1, in which the velocity is 0; the paper's 0.04 is for flow
      models that are not fully trained.
  """
  space = parameterisation.velocity(process)

  def combine(good: Prediction, bad: Prediction, w: Array, x_t: Array, t: Array) -> Prediction:
    u, u_bad = space.target(good.x0, good.eps, t), space.target(bad.x0, bad.eps, t)
    dot = lambda a, b: jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)  # noqa: E731
    s = dot(u, u_bad) / jnp.maximum(dot(u_bad, u_bad), 1e-12)
    u = u + (w - 1) * (u - s * u_bad)  # Eq. 3
    u = jnp.where(expand(t > 1 - zero_init, u), 0.0, u)
    return space.predict(u, x_t, t)._replace(variance=good.variance)

  return combine


def guided(
  denoise: Callable[..., Prediction],
  null: dict[str, Any],
  scale: Scale,
  interval: tuple[float, float] | None = None,
  combine: Combine = extrapolated,
) -> Callable[..., Prediction]:
  """Guides a denoiser away from its own unconditional prediction, in one network call for both.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`.
    null: the value of each entry of `cond` that means "no condition", of one image's shape: `{'label': 1000}`; or a
      negative condition to be led away from, with or without a batch axis. {} leaves the denoiser as it is.
    scale: w of Eq. 1, one for all or one for each image; the Python number 1 costs no unconditional call.
    interval: guide only while lo <= t <= hi (Kynkäänniemi et al. 2024); the network is called unguided, at half
      the cost, while no image is inside.
    combine: `extrapolated`, or `rescaled` or `zero_star` of a process.

  Returns:
    A denoiser, which can be guided, clipped or sampled like any other.
  """
  if not null:  # of data without labels
    return denoise
  return _steered(denoise, partial(_both, denoise, null), scale, interval, combine)


def autoguided(
  denoise: Callable[..., Prediction],
  weak: Callable[..., Prediction],
  scale: Scale,
  interval: tuple[float, float] | None = None,
  combine: Combine = extrapolated,
) -> Callable[..., Prediction]:
  """Guides a denoiser away from a weaker one: smaller, trained for less long, or both.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`.
    weak: the same of the weaker network; it is called with the same condition.
    scale, interval, combine: as for `guided`.
  """

  def pair(x_t: Array, t: Array, cond: Cond) -> tuple[Prediction, Prediction]:
    return denoise(x_t, t, cond), weak(x_t, t, cond)

  return _steered(denoise, pair, scale, interval, combine)


def classifier_guided(
  denoise: Callable[..., Prediction],
  process: Process,
  log_probability: Callable[..., Array],
  scale: Scale,
  interval: tuple[float, float] | None = None,
  margin: float = 1e-3,
) -> Callable[..., Prediction]:
  """Guides a denoiser towards what a classifier of noisy images recognises.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`.
    process: what corrupted x_t.
    log_probability: `(x_t, t, cond) ->` log p(cond | x_t), in nats, one for each image, of its own image only.
    scale: w of Eq. 4; 1 is unguided, and 2 makes of an unconditional denoiser the conditional one.
    interval: guide only while lo <= t <= hi.
    margin: of time from t = 1, where alpha may be 0, and the gradient with it: inside, both are taken at 1 - margin.
  """

  def guide(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    prediction = denoise(x_t, t, cond)
    before = jnp.minimum(t, 1 - margin)
    gradient = jax.grad(lambda x: jnp.sum(log_probability(x, before, cond)))(x_t)
    sigma, of_gradient = process.sigma(t), process.sigma(t) / process.alpha(before)
    push = (_weight(scale, t, x_t, interval) - 1) * expand(of_gradient, x_t) * gradient
    return prediction._replace(  # Eq. 4
      x0=prediction.x0 + expand(sigma, x_t) * push, eps=prediction.eps - expand(process.alpha(t), x_t) * push
    )

  return _unless_unguided(denoise, guide, scale, interval)


def _steered(
  denoise: Callable[..., Prediction],
  pair: Callable[..., tuple[Prediction, Prediction]],
  scale: Scale,
  interval: tuple[float, float] | None,
  combine: Combine,
) -> Callable[..., Prediction]:
  """`denoise`, replaced by a combination of a pair of predictions."""

  def guide(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    good, bad = pair(x_t, t, cond)
    return combine(good, bad, _weight(scale, t, x_t, interval), x_t, t)

  return _unless_unguided(denoise, guide, scale, interval)


def _weight(scale: Scale, t: Array, x_t: Array, interval: tuple[float, float] | None) -> Array:
  """w of each image, of rank like x_t: 1 outside the interval."""
  w = jnp.asarray(scale, jnp.float32)
  w = jnp.repeat(w, len(t) // w.size)  # an outer guidance doubles each image where it is
  if interval is not None:
    w = jnp.where((t >= interval[0]) & (t <= interval[1]), w, 1.0)
  return expand(w, x_t)


def _unless_unguided(
  denoise: Callable[..., Prediction],
  guide: Callable[..., Prediction],
  scale: Scale,
  interval: tuple[float, float] | None,
) -> Callable[..., Prediction]:
  """`guide`, or `denoise` where guidance would change nothing."""
  if isinstance(scale, (int, float)) and scale == 1:
    return denoise
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
  if null.ndim == value.ndim and value.ndim and len(value) % len(null) == 0:
    null = jnp.repeat(null, len(value) // len(null), axis=0)  # as in _weight
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
