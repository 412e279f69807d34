"""Diffusion and flow matching: a network learns to undo a Gaussian process.

  (1)  L = E_{x0, eps, t} [ w(t) mean |F(x_hat) - F(x)|^2 ],   x_t = alpha(t) x0 + sigma(t) eps

F is the space of the loss (eps, x0, v or velocity); x_hat is the network's prediction, and x what a perfect network's
output would be read as. The network may predict in one space and have its loss in another (`loss_in`), as in JiT.

If the parameterisation learns a variance, the bound of objectives/diffusion/vlb.py trains it (IDDPM, Nichol & Dhariwal
2021), with the mean held fixed; T times the mean of its terms estimates the bound if t is uniform, or weighted as if it
were:

  (2)  L_hybrid = L + lambda T E_t [ L_t ],   L_t in bits per dimension, lambda = 1/1000

Another loss, on hidden tokens of the network, may be added to Eq. 1, such as REPA's (`beside`).

Conditions, and how they are dropped for classifier-free guidance: objectives/conditioning.py. Times, noise
and drops follow from the step's key, whatever the devices the batch lies on.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, Denoising, InitFn, Objective, Phase, sampled
from jaxgen.objectives.conditioning import Conditioner, unconditional
from jaxgen.objectives.diffusion.vlb import vlb_estimate
from jaxgen.objectives.network import NET, Network
from jaxgen.objectives.weight_map import map_of, weighted
from jaxgen.processes import weighting as weightings
from jaxgen.processes.parameterisation import Parameterisation, Parameterise, denoiser
from jaxgen.processes.process import Denoiser, Prediction, Process, corrupt, noise_like
from jaxgen.processes.times import Importance, TimeSampler
from jaxgen.samplers.sampler import Guide, Sampler
from jaxgen.typing import Array, Batch, Float, Key, Metrics


class Beside(NamedTuple):
  """A loss on hidden tokens of the network, from the same forward pass as Eq. 1.

  Attributes:
    name: key of its own parameters, which are trained with the network's.
    init: `(key, tokens, frozen, batch) -> parameters`; `tokens` and the others give shapes.
    loss: `(parameters, tokens, frozen, batch, step) -> (loss, metrics)`; `tokens` is the network's collection 'hidden'.
  """

  name: str
  init: Callable[[Key[Array, ''], Any, Any, Batch], Any]
  loss: Callable[[Any, Any, Any, Batch, Array], tuple[Array, Metrics]]


def diffusion(
  net: nn.Module,
  process: Process,
  *,
  shape: tuple[int, ...],
  parameterisation: Parameterise,
  times: TimeSampler | Importance,
  sampler: Sampler,
  loss_in: Parameterise | None = None,
  weighting: weightings.Weighting = weightings.uniform,
  conditioner: Conditioner = unconditional,
  weight_map: str = 'weight',
  vlb_weight: float = 1e-3,
  guide: Sequence[Guide] = (),
  limit: float | None = 1.0,
  noise_std: float | None = None,
  beside: Beside | None = None,
) -> Objective:
  """Trains `net` to undo `process`.

  Args:
    net: `(x_t, network_time, cond, *, train) -> output`; its dropout uses the rng 'dropout'.
    process: the corruption. Parameterisations, sampler and guidance are given this one.
    shape: shape of one image, `(h, w, c)`.
    parameterisation: the meaning of the output, such as `parameterisation.velocity`.
    times: time sampler; `times.discrete(T)` for a process with T steps. The memory of `times.importance` is in `extra`.
    sampler: solver and times, such as `Sampler(euler, uniform(50))`.
    loss_in: the space of the loss, if not the parameterisation's own.
    weighting: multiplies the squared error in the space of the loss.
    conditioner: conditions of the network; `labels(10, drop_rate=0.1)` for classes.
    weight_map: entry of the batch that multiplies the squared error, of an image (b) or of each pixel (b h w 1);
      a batch without 'weight' has weight 1.
    vlb_weight: lambda of Eq. 2, for a parameterisation that learns a variance.
    guide: wrappers of the denoiser when sampling, the innermost first: `(classifier_free(4.0), clip(1.0))`.
    limit: samples are clipped to [-limit, limit]; None for latents.
    noise_std: standard deviation of the noise that sampling starts from; None for the process's at t = 1.
    beside: another loss; see Beside.
  """
  conditioner.check()
  space = parameterisation(process)
  judged = space if loss_in is None else loss_in(process)
  if space.learns_variance and process.num_steps is None:
    raise ValueError('a learned variance is trained by a bound over steps; give the process num_steps')
  network = Network(net)

  def denoiser_of(params: dict[str, Any], frozen: Any, **kwargs: Any) -> Denoiser:
    return denoiser(network.apply(params, **kwargs), process, parameterisation)

  def loss(
    params: dict[str, Any], state: Any, frozen: Any, batch: Batch, key: Key[Array, '']
  ) -> tuple[Float[Array, ''], Aux]:
    time_key, noise_key, drop_key, dropout_key, encode_key = jax.random.split(key, 5)
    x0 = batch['image'].astype(jnp.float32)
    t, weight = _sampled_times(times, state, time_key, len(x0))
    eps = noise_like(x0, noise_key)
    x_t = corrupt(process, x0, eps, t)
    cond, _ = conditioner.dropped(params, frozen, batch, drop_key=drop_key, encode_key=encode_key)
    tokens: dict[str, Any] = {}  # filled as the network is traced
    options = {'train': True, 'rngs': {'dropout': dropout_key}, 'hidden': None if beside is None else tokens}
    prediction = denoiser_of(params, frozen, **options)(x_t, t, cond)
    perfect = space.predict(space.target(x0, eps, t), x_t, t)
    error = squared_error(judged, prediction, perfect, t, map_of(batch, weight_map))
    each = weighting(process, t) * error  # Eq. 1
    extra = {'times': times.update(state.extra['times'], t, each)} if isinstance(times, Importance) else {}
    each *= weight
    total, metrics = jnp.mean(each), by_time(each, t)
    if space.learns_variance:
      fixed = prediction._replace(x0=jax.lax.stop_gradient(prediction.x0))
      bound = vlb_estimate(process, fixed, x0, x_t, t, weight)
      total, metrics = total + vlb_weight * bound, {**metrics, 'vlb': bound}  # Eq. 2
    if beside is not None:
      value, found = beside.loss(params[beside.name], tokens, frozen, batch, state.step)
      total, metrics = total + value, {**metrics, **found}
    return total, Aux({'loss': total, **metrics}, extra)

  denoising = Denoising(
    process=lambda params: process,
    denoiser=lambda params, frozen: denoiser_of(params, frozen, train=False),
    condition=conditioner.condition,
    sampler=sampler,
    shape=shape,
    limit=limit,
    guide=tuple(guide),
    predicts=parameterisation,
    noise_std=noise_std,
  )
  extra = {'times': times.init()} if isinstance(times, Importance) else {}
  return Objective(
    init=init_of(network, shape, conditioner, extra=extra, beside=beside),
    phases=(Phase('diffusion', trained(conditioner, beside), loss),),
    sample=sampled(denoising),
    denoising=denoising,
    conditioner=conditioner,
    networks={NET: net},
  )


def init_of(
  network: Network,
  shape: tuple[int, ...],
  conditioner: Conditioner,
  *,
  extra: dict[str, Any] | None = None,
  beside: Beside | None = None,
) -> InitFn:
  """`Objective.init` of one network and its conditioner.

  Args:
    network: the network.
    shape: shape of one image.
    conditioner: encodes a batch for its shapes, and adds parameters of its own.
    extra: the objective's first `extra`.
    beside: a loss with parameters of its own.
  """

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    made = conditioner.init(jax.random.fold_in(key, 1))
    fields = conditioner.select(batch)
    keys = jax.random.split(jax.random.key(0), len(next(iter(fields.values()))) if fields else 1)
    cond = jax.eval_shape(conditioner.encode, made, frozen, fields, keys)
    params = {NET: network.init(key, shape, cond), **made}
    if beside is not None:
      tokens = jax.eval_shape(lambda params: network.tokens(params, shape, cond), params)
      params[beside.name] = beside.init(jax.random.fold_in(key, 2), tokens, frozen, batch)
    return {'params': params, 'extra': dict(extra or {})}

  return init


def trained(conditioner: Conditioner, beside: Beside | None = None) -> str | tuple[str, ...]:
  """The keys that a phase trains: the network, and the own parameters of the conditioner and of another loss."""
  names = (*conditioner.trains, *(() if beside is None else (beside.name,)))
  return (NET, *names) if names else NET


def _sampled_times(
  times: TimeSampler | Importance, state: Any, key: Key[Array, ''], num: int
) -> tuple[Float[Array, ' b'], Float[Array, ' b']]:
  """A time for each image, and the weight that makes up for how it was sampled."""
  if isinstance(times, Importance):
    return times.draw(state.extra['times'], key, num)
  return times(key, num), jnp.ones(num)


def squared_error(
  space: Parameterisation,
  prediction: Prediction,
  perfect: Prediction,
  t: Float[Array, ' b'],
  weight: Float[Array, 'b ...'] | None = None,
) -> Float[Array, ' b']:
  """The mean squared error of each image in one space; float32.

  `perfect` went through the same conversion as `prediction`, so the error of a perfect network is 0 at any t. A weight,
  of images or of pixels of any resolution, multiplies the squares.
  """
  error = (space.target(prediction.x0, prediction.eps, t) - space.target(perfect.x0, perfect.eps, t)) ** 2
  error = weighted(error, weight)
  return jnp.mean(error, axis=tuple(range(1, error.ndim)))


def by_time(each: Float[Array, ' b'], t: Float[Array, ' b']) -> Metrics:
  """What each quarter of time adds to the loss: the four sum to it, whatever the distribution of t."""
  quarter = jnp.clip(jnp.floor(4 * t), 0, 3)
  return {f'loss_t{25 * i:02d}': jnp.mean(jnp.where(quarter == i, each, 0.0)) for i in range(4)}
