"""DPM-Solver (Lu et al. 2022a, `space=noise`) and DPM-Solver++ (Lu et al. 2022b, `space=data`), orders 1 to 3.

  (1)  x_s = alpha_s x0 + sigma_s eps + c sum_j w_j (f_j - f),   Eq. 3 of samplers/exponential.py, f = x0 or eps

Multistep takes the f_j from the steps before, one network call a step; singlestep takes them from inside the step, as
many calls as its order:

  (2)  order 2   u at l_t + h/2 by order 1;                                   f_1 = f(u), w of bh2
  (3)  order 3   u at l_t + h/3 by order 1, then v at l_t + 2h/3 with f(u);   f_1 = f(v), w exact

The SDE variant of DPM-Solver++ adds noise, with r = e^-h = alpha_t sigma_s / (alpha_s sigma_t):

  (4)  x_s = alpha_s x0 + sigma_s r^eta eps + alpha_s sum_j w_j (x0_j - x0) + sigma_s sqrt(1 - r^(2 eta)) z,   w of
       (1 + eta) h

eta = 1 is SDE-DPM-Solver++ (order 1 of it is DDPM's ancestral sampling), eta = 0 is the ODE. In distribution it is of
orders 1 and 2; order 3 has smaller errors on a Gaussian, but is not proven to be of more than order 2.

Multistep starts with lower orders: the first step is DDIM, whose error is h^2. To see order 3 as a whole, the first two
steps have to be shorter than the others. Runs of fewer than ten steps also end with lower orders, 2 and then 1,
as in the authors' code. A step to sigma = 0 or from alpha = 0 is always DDIM's.

Differs from Lu et al.'s released multistep of order 3, which takes half of the second derivative and is of order 2.
"""

import itertools

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Prediction, Process
from jaxgen.samplers import exponential
from jaxgen.samplers.exponential import Space, bh2, data
from jaxgen.samplers.noise import required, step_noise
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


def dpm_multistep(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  order: int = 2,
  space: Space = data,
  eta: float = 0.0,
  second: exponential.Second | None = bh2,
  lower_final_below: float = 10,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], one network call a step.

  Args:
    order: 1 to 3.
    space: exponential.data (DPM-Solver++) or exponential.noise (DPM-Solver).
    eta: share of noise, in [0, 1]; 1 is the SDE variant, for exponential.data.
    second: the weights of order 2: exponential.bh2 as published ("midpoint"), or None for exact ones ("heun").
    lower_final_below: a run of fewer steps than this ends with lower orders; 0 for the full order.
  """
  exponential.check_order(order, 'dpm_multistep')
  if not 0 <= eta <= 1:
    raise ValueError(f'eta is {eta}; it goes from 0 (the ODE) to 1 (the SDE)')
  if eta and space is not data:
    raise ValueError(f'eta is {eta} with another space than data: the SDE variant is of DPM-Solver++, use space=data')
  times = jnp.asarray(times)
  keys = required(keys, 'dpm_multistep with eta > 0') if eta else keys
  alpha, sigma = process.alpha(times), process.sigma(times)
  ratio = (alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])) ** eta
  of_eps, std = sigma[1:] * ratio, sigma[1:] * jnp.sqrt(jnp.maximum(1 - ratio**2, 0.0))
  of_past = exponential.past_weights(
    exponential.half_log_snr(process, times),
    order,
    space.sign,
    stretch=1 + eta,
    second=second,
    lower_final=len(times) - 1 < lower_final_below,
  )
  of_past = of_past * space.factor(alpha[1:], sigma[1:])[:, None]

  def step(carry: tuple[Array, tuple[Array, ...]], at: tuple[Array, ...]) -> tuple[tuple, None]:
    (x, past), (i, t, of_x0, of_eps, of_past, std) = carry, at
    prediction = denoise(x, jnp.full(x.shape[:1], t), cond or {})
    now = space.of(prediction)
    x = of_x0 * prediction.x0 + of_eps * prediction.eps  # Eq. 4, and Eq. 1 for eta = 0
    for j, before in enumerate(past):
      x += of_past[j] * (before - now)
    if eta and keys is not None:
      x += std * step_noise(keys, i, x)
    return (x, (now, *past)[: order - 1]), None

  past = (jnp.zeros_like(x),) * (order - 1)
  return jax.lax.scan(step, (x, past), (jnp.arange(len(std)), times[:-1], alpha[1:], of_eps, of_past, std))[0][0]


def dpm_singlestep(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  order: int = 2,
  space: Space = data,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], `order` network calls a step, fewer at the ends (see the module).

  Args:
    order: 1 to 3.
    space: exponential.data (DPM-Solver++) or exponential.noise (DPM-Solver).
  """
  exponential.check_order(order, 'dpm_singlestep')
  times = jnp.asarray(times)
  l = exponential.half_log_snr(process, times)
  is_regular = exponential.regular(l)
  start, h = jnp.where(is_regular, l[:-1], 0.0), jnp.where(is_regular, l[1:] - l[:-1], 1.0)
  fractions = [k / order for k in range(order + 1)]
  stops = [times[:-1], *(_within(process, times, start + r * h) for r in fractions[1:-1]), times[1:]]
  # Stage k goes to fractions[k + 1] of the step, with the prediction at fractions[k] as its only node.
  tables = [jnp.zeros_like(h)]
  for r, to in itertools.pairwise(fractions[1:]):
    node = jnp.full_like(h, r / to)
    tables += exponential.weights(to * h, [node], space.sign, bh2 if order == 2 else None)

  def step(x: Array, at: tuple[Array, list[Array], list[Array]]) -> tuple[Array, None]:
    higher, stops, tables = at

    def predict(x_at: Array, time: Array) -> Prediction:
      return denoise(x_at, jnp.full(x.shape[:1], time), cond or {})

    first = predict(x, stops[0])

    def go(s: Array) -> Array:
      return process.alpha(s) * first.x0 + process.sigma(s) * first.eps

    def stages() -> Array:
      y = go(stops[1])
      for time, s, weight in zip(stops[1:-1], stops[2:], tables[1:], strict=True):
        difference = space.of(predict(y, time)) - space.of(first)
        y = go(s) + space.factor(process.alpha(s), process.sigma(s)) * weight * difference  # Eq. 1
      return y

    return (jax.lax.cond(higher, stages, lambda: go(stops[-1])) if order > 1 else go(stops[-1])), None

  return jax.lax.scan(step, x, (is_regular, stops, tables))[0]


def _within(process: Process, times: Array, l: Array) -> Array:
  """The times inside the steps at which log(alpha/sigma) is l."""
  return exponential.time_of(process, l, times[1:], times[:-1])
