"""Diffusion and flow matching: a network learns to undo a Gaussian process.

  (1)  L = E_{x0, eps, t} [ w(t) mean |F(x_hat) - F(x)|^2 ],   x_t = alpha(t) x0 + sigma(t) eps

F is the space of the loss (eps, x0, v or velocity); x_hat is the network's prediction, and x what a perfect network's
output would be read as. The network may predict in one space and be judged in another (`loss_in`), as in JiT.

If the parameterisation learns a variance, the bound of objectives/diffusion/vlb.py trains it (IDDPM, Nichol & Dhariwal
2021), with the mean held fixed; T times the mean of its terms estimates the bound if t is uniform, or weighed as if:

  (2)  L_hybrid = L + lambda T E_t [ L_t ],   L_t in bits per dimension, lambda = 1/1000

Classifier-free guidance: with probability `drop_rate` the whole condition of an image is replaced by `null`.
Times, noise and drops follow from the step's key, whatever the devices the batch lies on.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, Denoising, Objective, Phase, sampled
from jaxgen.objectives.diffusion.vlb import vlb_estimate
from jaxgen.processes import weighting as weightings
from jaxgen.processes.parameterisation import Parameterisation, denoiser
from jaxgen.processes.process import Prediction, Process, corrupt, expand, noise_like
from jaxgen.processes.times import Importance, TimeSampler
from jaxgen.samplers.guidance import nothing
from jaxgen.typing import Array, Batch, Cond, Float, Key, Metrics, Params


def diffusion(
  net: nn.Module,
  process: Process,
  *,
  shape: tuple[int, ...],
  parameterisation: Parameterisation,
  times: TimeSampler | Importance,
  sampler: Callable[..., Array],
  loss_in: Parameterisation | None = None,
  weighting: weightings.Weighting = weightings.uniform,
  null: dict[str, Any] | None = None,
  drop_rate: float = 0.0,
  vlb_weight: float = 1e-3,
  guide: Callable[[Callable], Callable] = lambda denoise: denoise,
  limit: float | None = 1.0,
) -> Objective:
  """Trains `net` to undo `process`.

  Args:
    net: `(x_t, network_time, cond, *, train) -> output`; its dropout uses the rng 'dropout'.
    process: the corruption.
    shape: of one image, `(h, w, c)`.
    parameterisation: what the output means.
    times: time sampler; `times.discrete(T)` for a process with T steps. The memory of `times.importance` is in `extra`.
    sampler: `(denoise, *, process, x, cond, keys) -> x0`, such as `partial(euler, times=uniform(50))`; a partial's
      times are those that images are edited with.
    loss_in: the space of the loss, if not the parameterisation's own.
    weighting: multiplies the squared error in the space of the loss.
    null: the null value of each conditioning entry, `{'label': 1000}`. Its names are the entries of the batch that
      the network sees; {} is unconditional.
    drop_rate: share of images trained without their condition.
    vlb_weight: lambda of Eq. 2, for a parameterisation that learns a variance.
    guide: denoiser to denoiser, when sampling, such as `partial(guided, null=null, scale=4.0)`.
    limit: samples are clipped to [-limit, limit]; None for latents.
  """
  null = null or {}
  if not 0 <= drop_rate < 1:
    raise ValueError(f'drop_rate is {drop_rate}; it is a probability, in [0, 1)')
  if parameterisation.learns_variance and process.num_steps is None:
    raise ValueError('a learned variance is trained by a bound over steps; give the process num_steps')

  denoiser_of = denoiser_of_network(net, process, parameterisation)

  def init(key: Key[Array, ''], batch: dict[str, Any]) -> dict[str, Any]:
    extra = {'times': times.init()} if isinstance(times, Importance) else {}
    return {'params': {'net': init_network(net, key, shape, named(null, batch))}, 'extra': extra}

  def loss(
    params: dict[str, Any], state: Any, frozen: Any, batch: Batch, key: Key[Array, '']
  ) -> tuple[Float[Array, ''], Aux]:
    time_key, noise_key, drop_key, dropout_key = jax.random.split(key, 4)
    x0 = batch['image'].astype(jnp.float32)
    if isinstance(times, Importance):
      t, weight = times.draw(state.extra['times'], time_key, len(x0))
    else:
      t, weight = times(time_key, len(x0)), jnp.ones(len(x0))
    eps = noise_like(x0, noise_key)
    x_t = corrupt(process, x0, eps, t)
    cond = drop(named(null, batch), null, drop_rate, drop_key)
    prediction = denoiser_of(params, train=True, rngs={'dropout': dropout_key})(x_t, t, cond)
    perfect = parameterisation.predict(parameterisation.target(x0, eps, t), x_t, t)
    each = weighting(process, t) * squared_error(loss_in or parameterisation, prediction, perfect, t)  # Eq. 1
    extra = {'times': times.update(state.extra['times'], t, each)} if isinstance(times, Importance) else {}
    each *= weight
    total, metrics = jnp.mean(each), by_time(each, t)
    if parameterisation.learns_variance:
      fixed = prediction._replace(x0=jax.lax.stop_gradient(prediction.x0))
      bound = vlb_estimate(process, fixed, x0, x_t, t, weight)
      total, metrics = total + vlb_weight * bound, {**metrics, 'vlb': bound}  # Eq. 2
    return total, Aux({'loss': total, **metrics}, extra)

  denoising = Denoising(
    process=lambda params: process,
    denoiser=lambda params, frozen: denoiser_of(params, train=False),
    condition=functools.partial(named, null),
    sampler=sampler,
    shape=shape,
    limit=limit,
    guide=guide,
  )
  return Objective(init, (Phase('diffusion', 'net', loss),), sampled(denoising), denoising)


def init_network(net: nn.Module, key: Key[Array, ''], shape: tuple[int, ...], cond: dict[str, Any]) -> Params:
  """The first parameters of `net`, for images of `shape` and conditions shaped like `cond`, whatever the batch."""
  like = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), cond)
  variables: Any = net.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), like, train=False)
  return variables['params']


def denoiser_of_network(
  net: nn.Module, process: Process, parameterisation: Parameterisation
) -> Callable[..., Callable[[Array, Array, Cond], Prediction]]:
  """Returns `denoiser_of(params, *, train, rngs)`, with the parameters of `diffusion(net, process, ...)`."""

  def denoiser_of(params: dict[str, Any], **kwargs: Any) -> Callable[[Array, Array, Cond], Prediction]:
    def apply(x_t: Array, network_time: Array, cond: Cond) -> Array:
      output: Any = net.apply({'params': params['net']}, x_t, network_time, cond, **kwargs)
      return output

    return denoiser(apply, process, parameterisation)

  return denoiser_of


def squared_error(
  space: Parameterisation, prediction: Prediction, perfect: Prediction, t: Float[Array, ' b']
) -> Float[Array, ' b']:
  """The mean squared error of each image in one space; float32.

  `perfect` went through the same conversion as `prediction`, so the error of a perfect network is 0 at any t.
  """
  error = space.target(prediction.x0, prediction.eps, t) - space.target(perfect.x0, perfect.eps, t)
  return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


def named(null: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
  """The entries of a batch that `null` names: the condition that the network sees."""
  missing = sorted(set(null) - set(batch))
  if missing:
    raise ValueError(f'null names {missing}, which the batch has not; it has {sorted(batch)}')
  return {name: batch[name] for name in null}


def drop(cond: Cond, null: dict[str, Any], rate: float, key: Key[Array, '']) -> Cond:
  """Replaces the whole condition of an image by `null`, with probability `rate`."""
  if not cond or not rate:
    return cond
  dropped = jax.random.bernoulli(key, rate, (len(next(iter(cond.values()))),))
  return jax.tree.map(lambda a, b: jnp.where(expand(dropped, a), b, a), cond, nothing(null, cond))


def by_time(each: Float[Array, ' b'], t: Float[Array, ' b']) -> Metrics:
  """What each quarter of time adds to the loss: the four sum to it, whatever the distribution of t."""
  quarter = jnp.clip(jnp.floor(4 * t), 0, 3)
  return {f'loss_t{25 * i:02d}': jnp.mean(jnp.where(quarter == i, each, 0.0)) for i in range(4)}
