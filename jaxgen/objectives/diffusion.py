"""Diffusion and flow matching: a network learns to undo a Gaussian process.

  (1)  L = E_{x0, eps, t} [ w(t) mean |F(x_hat) - F(x)|^2 ],   x_t = alpha(t) x0 + sigma(t) eps

F is the space of the loss (eps, x0, v or velocity); x_hat is the network's prediction, and x what a perfect network's
output would be read as. The network may predict in one space and be judged in another (`loss_in`), as in JiT.

  (2)  L_hybrid = L + lambda T L_vb,   L_vb with the mean held fixed   (IDDPM, Nichol & Dhariwal 2021)

Classifier-free guidance: with probability `drop_rate` the whole condition of an image is replaced by `null`.
Time, noise and drops of image i of step s depend on the step's key and on i alone, not on the devices.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.processes import weighting as weightings
from jaxgen.processes.parameterisation import Parameterisation, denoiser
from jaxgen.processes.process import Process, corrupt, expand, image_noise
from jaxgen.processes.times import TimeSampler
from jaxgen.samplers.guidance import nothing
from jaxgen.typing import Array, Cond, Float, Key, Metrics


def diffusion(
  net: nn.Module,
  process: Process,
  *,
  shape: tuple[int, ...],
  parameterisation: Parameterisation,
  times: TimeSampler,
  sampler: Callable[..., Array],
  loss_in: Parameterisation | None = None,
  weighting: weightings.Weighting = weightings.uniform,
  null: dict[str, Any] | None = None,
  drop_rate: float = 0.0,
  guide: Callable[[Callable], Callable] = lambda denoise: denoise,
  limit: float | None = 1.0,
) -> Objective:
  """Trains `net` to undo `process`.

  Args:
    net: `(x_t, network_time, cond, *, train) -> output`; its dropout uses the rng 'dropout'.
    process: the corruption.
    shape: of one image, `(h, w, c)`.
    parameterisation: what the output means.
    times: time sampler; `times.discrete(T)` for a process with T steps.
    sampler: `(denoise, *, x, cond, keys) -> x0`, such as `partial(euler, process=process, times=uniform(50))`.
    loss_in: the space of the loss, if not the parameterisation's own.
    weighting: multiplies the squared error in the space of the loss.
    null: the null value of each conditioning entry, `{'label': 1000}`. Its names are the entries of the batch that
      the network sees; {} is unconditional.
    drop_rate: share of images trained without their condition.
    guide: denoiser to denoiser, when sampling, such as `partial(guided, null=null, scale=4.0)`.
    limit: samples are clipped to [-limit, limit]; None for latents.
  """
  null = null or {}
  if not 0 <= drop_rate < 1:
    raise ValueError(f'drop_rate is {drop_rate}; it is a probability, in [0, 1)')
  space = loss_in or parameterisation

  def init(key: Key[Array, ''], batch: dict[str, Any]) -> dict[str, Any]:
    cond = {name: jnp.zeros((1, *batch[name].shape[1:]), batch[name].dtype) for name in null}
    variables = net.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), cond, train=False)
    return {'params': {'net': variables['params']}, 'extra': {}}

  def loss(params: dict, state: Any, frozen: Any, batch: dict, key: Key[Array, '']) -> tuple[Array, Aux]:
    time_key, noise_key, drop_key, net_key = jax.random.split(key, 4)
    x0 = batch['image'].astype(jnp.float32)
    t = times(time_key, len(x0))
    eps = image_noise(jax.random.split(noise_key, len(x0)), x0.shape[1:])
    x_t = corrupt(process, x0, eps, t)
    cond = drop({name: batch[name] for name in null}, null, drop_rate, drop_key)

    def apply(x: Array, network_time: Array, cond: Cond) -> Array:
      rngs = {'dropout': net_key}
      return net.apply({'params': params['net']}, x, network_time, cond, train=True, rngs=rngs)

    prediction = denoiser(apply, process, parameterisation)(x_t, t, cond)
    perfect = parameterisation.predict(parameterisation.target(x0, eps, t), x_t, t)
    error = space.target(prediction.x0, prediction.eps, t) - space.target(perfect.x0, perfect.eps, t)
    each = weighting(process, t) * jnp.mean(error**2, axis=tuple(range(1, error.ndim)))  # Eq. 1
    total = jnp.mean(each)
    return total, Aux({'loss': total, **by_time(each, t)})

  def sample(params: dict, frozen: Any, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b ...']:
    def apply(x: Array, network_time: Array, cond: Cond) -> Array:
      return net.apply({'params': params['net']}, x, network_time, cond, train=False)

    noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    x = process.sigma(jnp.float32(1)) * image_noise(noise_keys, shape)
    denoise = guide(denoiser(apply, process, parameterisation))
    x0 = sampler(denoise, x=x, cond={name: cond[name] for name in null}, keys=step_keys)
    return x0 if limit is None else jnp.clip(x0, -limit, limit)

  return Objective(init, (Phase('diffusion', 'net', loss),), sample)


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
