"""Guidance: denoisers made of denoisers, so that each can be guided, clipped or sampled again.

With conditions c_0, ..., c_n, from the weakest to the whole condition c_n, and weights w_i,

  (1)  D_w = D(c_0) + sum_i w_i (D(c_i) - D(c_{i-1})) = D(c_n) + sum_i (w_i - 1) (D(c_i) - D(c_{i-1}))

all in one call of the network; w_i = 1 is unguided. Classifier-free guidance (Ho & Salimans 2022) has one term, c_0 the
null condition; a negative prompt is another c_0; InstructPix2Pix (Brooks et al. 2023) has two terms, c_0 without image
and text and c_1 without text. Autoguidance (Karras et al. 2024) has a weaker network's D(c) in place of D(c_0). D is x0
and eps alike: both are affine in each other given x_t, and the weights of Eq. 1 add to 1, so they stay consistent. All
channels are guided. A learned variance is that of D(c_n).

Eq. 1 is the default of `combine`, which others replace:

  (2)  rescaled   x0' = (f std(x0 of D)/std(x0 of D_w) + 1 - f) x0 of D_w                 (Lin et al. 2024, Eqs. 15, 16)
  (3)  zero_star  u_w = u + sum_i (w_i - 1) (u_i - s_i u_{i-1}),   s = <u, u'>/<u', u'>,   u the velocity  (CFG-Zero*,
                  Fan et al. 2025)

Classifier guidance (Dhariwal & Nichol 2021) samples p(x) p(c | x)^(w - 1), so w = 1 is unguided as well:

  (4)  eps_w = eps - (w - 1) sigma g,   x0_w = x0 + (w - 1) sigma^2/alpha g,   g the gradient of log p(c | x_t) in x_t

Differs from Ho & Salimans: their weight is w - 1. Differs from DiT's released code, which guides the first 3 of the 4
latent channels (kept there for reproducibility); its paper, and this, guides all. Differs from Lin et al.: Eq. 2 is of
x0, whatever the network predicts. Differs from Dhariwal & Nichol: their scale is w - 1.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.processes import parameterisation
from jaxgen.processes.process import Denoiser, Prediction, Process, expand
from jaxgen.samplers.sampler import Guide, Without
from jaxgen.typing import Array, Cond, Float

Scale = float | Float[Array, ''] | Float[Array, ' b']
Interval = tuple[float, float]  # guide only while lo <= t <= hi (Kynkäänniemi et al. 2024)
# (D(c_0) ... D(c_n), w_1 ... w_n of rank like x_t, x_t, t) -> D_w
Combine = Callable[[Sequence[Prediction], Sequence[Array], Array, Array], Prediction]
LogProbability = Callable[[Array, Array, Cond], Array]  # (x_t, t, cond) -> log p(cond | x_t), nats, one for each image


class Term(NamedTuple):
  """Term i of Eq. 1.

  Attributes:
    less: the entries of `cond` that differ in c_{i-1}, with a batch axis or of one image's shape, such as
      `{'label': 1000}`.
    scale: w_i, one for all or one for each image.
  """

  less: Mapping[str, Any]
  scale: Scale


def extrapolated(
  predictions: Sequence[Prediction],
  weights: Sequence[Float[Array, 'b ...']],
  x_t: Float[Array, 'b ...'],
  t: Float[Array, ' b'],
) -> Prediction:
  """Eq. 1."""
  x0, eps = predictions[-1].x0, predictions[-1].eps
  for w, (less, more) in zip(weights, itertools.pairwise(predictions), strict=True):
    x0, eps = x0 + (w - 1) * (more.x0 - less.x0), eps + (w - 1) * (more.eps - less.eps)
  return predictions[-1]._replace(x0=x0, eps=eps)


def rescaled(process: Process, amount: float = 0.7, combine: Combine = extrapolated) -> Combine:
  """Rescales the guided prediction to the contrast of the unguided one; `amount` is f of Eq. 2."""
  of_x0 = parameterisation.x0(process)

  def rescale(predictions: Sequence[Prediction], weights: Sequence[Array], x_t: Array, t: Array) -> Prediction:
    x0, good = combine(predictions, weights, x_t, t).x0, predictions[-1]
    std = lambda x: jnp.std(x, axis=tuple(range(1, x.ndim)))  # noqa: E731
    ratio = std(good.x0) / jnp.maximum(std(x0), 1e-6)
    x0 = expand(amount * ratio + 1 - amount, x0) * x0  # Eq. 2
    return of_x0.predict(x0, x_t, t)._replace(variance=good.variance)

  return rescale


def zero_star(process: Process, zero_init: float = 0.0) -> Combine:
  """CFG-Zero*: the velocity with the weaker condition is fitted to the other one before it is subtracted.

  Args:
    process: the process whose velocity is guided.
    zero_init: first share of time in [0, 1], from t = 1, in which the velocity is 0; the paper's 0.04 is for flow
      models that are not fully trained.
  """
  space = parameterisation.velocity(process)

  def combine(predictions: Sequence[Prediction], weights: Sequence[Array], x_t: Array, t: Array) -> Prediction:
    velocities = [space.target(prediction.x0, prediction.eps, t) for prediction in predictions]
    dot = lambda a, b: jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)  # noqa: E731
    u = velocities[-1]
    for w, (less, more) in zip(weights, itertools.pairwise(velocities), strict=True):
      s = dot(more, less) / jnp.maximum(dot(less, less), 1e-12)
      u = u + (w - 1) * (more - s * less)  # Eq. 3
    u = jnp.where(expand(t > 1 - zero_init, u), 0.0, u)
    return space.predict(u, x_t, t)._replace(variance=predictions[-1].variance)

  return combine


def guided(
  denoise: Denoiser, terms: Sequence[Term], *, interval: Interval | None = None, combine: Combine = extrapolated
) -> Denoiser:
  """Guides a denoiser away from its predictions with weaker conditions, in one network call for all of them.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`.
    terms: terms of the sum, the weakest condition first. Terms at the start whose scale is the Python number 1, and
      terms without entries (of data without labels), cost nothing.
    interval: guide only at these times; the network is called unguided, at its own cost, while no image is inside.
    combine: `extrapolated`, or `rescaled` or `zero_star` of a process.

  Returns:
    A denoiser, which can be guided, clipped or sampled like any other.
  """
  terms = tuple(itertools.dropwhile(lambda term: _is_one(term.scale), (term for term in terms if term.less)))

  def guide(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    predictions = _all_predictions(denoise, [term.less for term in terms], x_t, t, cond)
    return combine(predictions, [_weight(term.scale, t, x_t, interval) for term in terms], x_t, t)

  return _inside(interval, denoise, guide) if terms else denoise


def classifier_free(
  scale: Scale,
  names: Sequence[str] = (),
  *,
  interval: Interval | None = None,
  combine: Callable[[Process], Combine] | None = None,
) -> Guide:
  """Classifier-free guidance, for the `guide` of an objective.

  Args:
    scale: w; the Python number 1 costs no second prediction.
    names: the fields that c_0 lacks; by default all that have a null.
    interval: see `guided`.
    combine: `rescaled`, `zero_star` or a partial of them; None for Eq. 1.
  """
  return compositional({tuple(names): scale}, interval=interval, combine=combine)


def compositional(
  scales: Mapping[tuple[str, ...], Scale],
  *,
  interval: Interval | None = None,
  combine: Callable[[Process], Combine] | None = None,
) -> Guide:
  """A sum of terms, for the `guide` of an objective.

  Args:
    scales: w_i by the fields that c_{i-1} lacks, the weakest condition first: for InstructPix2Pix
      `{('image', 'text'): 1.5, ('text',): 7.5}`.
    interval, combine: as in `classifier_free`.
  """

  def guide(denoise: Denoiser, process: Process, without: Without) -> Denoiser:
    if all(_is_one(scale) for scale in scales.values()):
      return denoise
    terms = [Term(without(names), scale) for names, scale in scales.items()]
    made = extrapolated if combine is None else combine(process)
    return guided(denoise, terms, interval=interval, combine=made)

  return guide


def autoguided(
  denoise: Denoiser,
  weak: Denoiser,
  scale: Scale,
  *,
  interval: Interval | None = None,
  combine: Combine = extrapolated,
) -> Denoiser:
  """Guides a denoiser away from a weaker one: smaller, trained for less long, or both.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`.
    weak: the weaker network's denoiser; it is called with the same condition.
    scale, interval, combine: as in `guided`.
  """

  def guide(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    good, bad = denoise(x_t, t, cond), weak(x_t, t, cond)
    return combine([bad, good], [_weight(scale, t, x_t, interval)], x_t, t)

  return denoise if _is_one(scale) else _inside(interval, denoise, guide)


def classifier_guided(
  denoise: Denoiser,
  process: Process,
  log_probability: LogProbability,
  scale: Scale,
  *,
  interval: Interval | None = None,
  margin: float = 1e-3,
) -> Denoiser:
  """Guides a denoiser towards the class of a classifier of noisy images.

  Args:
    denoise: `(x_t, t, cond) -> Prediction`.
    process: the process that corrupted x_t.
    log_probability: `(x_t, t, cond) -> log p(cond | x_t)` in nats; an image's depends on that image alone.
    scale: w of Eq. 4; 1 is unguided, and 2 makes an unconditional denoiser the conditional one.
    interval: guide only at these times.
    margin: distance from t = 1 within which both are taken at 1 - margin: alpha may be 0 there, and the gradient with
      it.
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

  return denoise if _is_one(scale) else _inside(interval, denoise, guide)


def replaced(cond: Cond, entries: Mapping[str, Any]) -> Cond:
  """`cond` with some entries replaced for every image.

  Args:
    cond: conditioning with leading batch axis.
    entries: new values, of one image's shape or with a batch axis that divides the batch's.
  """
  missing = sorted(set(entries) - set(cond))
  if missing:
    raise ValueError(f'guidance needs cond[{missing[0]!r}], got {sorted(cond)}: give it, or set the scale to 1')
  return {name: _fill(entries[name], value) if name in entries else value for name, value in cond.items()}


def _fill(entry: Any, value: Array) -> Array:
  entry = jnp.asarray(entry, value.dtype)
  if entry.ndim == value.ndim and value.ndim and len(value) % len(entry) == 0:
    entry = jnp.repeat(entry, len(value) // len(entry), axis=0)  # as in _weight
  return jnp.broadcast_to(entry.reshape((1,) * (value.ndim - entry.ndim) + entry.shape), value.shape)


def _all_predictions(
  denoise: Denoiser, less: Sequence[Mapping[str, Any]], x_t: Array, t: Array, cond: Cond
) -> list[Prediction]:
  """The predictions for c_0 ... c_n, from one call on n + 1 times the batch.

  Image i becomes rows (n + 1) i ... (n + 1) i + n, so a batch that is sharded over devices grows where it lies.
  """
  count = len(less) + 1

  def rows(*levels: Array) -> Array:
    return jnp.stack(levels, axis=1).reshape(-1, *levels[0].shape[1:])

  conds = [cond, *(replaced(cond, entries) for entries in reversed(less))]
  prediction = denoise(rows(*[x_t] * count), rows(*[t] * count), jax.tree.map(rows, *conds))
  split = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]), prediction)
  return [jax.tree.map(lambda leaf, i=i: leaf[:, i], split) for i in reversed(range(count))]


def _weight(scale: Scale, t: Array, x_t: Array, interval: Interval | None) -> Array:
  """w of each image, of rank like x_t: 1 outside the interval."""
  w = jnp.asarray(scale, jnp.float32)
  w = jnp.repeat(w, len(t) // w.size)  # an outer guidance multiplies each image in place
  if interval is not None:
    w = jnp.where((t >= interval[0]) & (t <= interval[1]), w, 1.0)
  return expand(w, x_t)


def _is_one(scale: Scale) -> bool:
  return isinstance(scale, (int, float)) and scale == 1


def _inside(interval: Interval | None, denoise: Denoiser, guide: Denoiser) -> Denoiser:
  """`guide`, and `denoise` alone while no image is inside the interval."""
  if interval is None:
    return guide

  def guide_inside(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    inside = jnp.any((t >= interval[0]) & (t <= interval[1]))
    return jax.lax.cond(inside, guide, denoise, x_t, t, cond)

  return guide_inside
