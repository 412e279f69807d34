"""Parameterisations: the quantity that a network predicts, and the x0 and eps that follow from it.

With a = alpha(t), s = sigma(t), their rates a', s', and x_t = a x0 + s eps, each member is a `target` of (x0, eps)
and its inverse given x_t, `predict`:

  eps       (1)  target  eps                (2)  x0 = (x_t - s eps) / a
  x0        (3)  target  x0                 (4)  eps = (x_t - a x0) / s
  v         (5)  target  v = a eps - s x0   (6)  x0 = (a x_t - s v) / D,    eps = (s x_t + a v) / D,    D = a^2 + s^2
  velocity  (7)  target  u = a' x0 + s' eps (8)  x0 = (s' x_t - s u) / D,   eps = (a u - a' x_t) / D,   D = a s' - a' s

v is of Salimans & Ho 2022 (D = 1 for VP); the velocity is d x_t/dt (eps - x0, D = 1, for rectified flow). Others:

  (9)  score = -eps / s

Three conversions are singular at an end of time: Eq. 2 where a = 0, Eq. 4 where s = 0, Eqs. 7 and 8 where s' is
infinite (t = 0 of VP). Their coefficients are taken at the time nearest to t that is at least `margin` from that end:
everything stays finite, and exact elsewhere. A process with T steps has a > 0 in all of them, and Eq. 2 needs no margin
there: DDPM and IDDPM start at t = 1. A large margin is a method: JiT (Li & He 2025) predicts x0, takes the loss
on the velocity, and divides by no less than sigma = 0.05, which is `x0(process, margin=0.05)` of rectified flow.

`preconditioned` is the network F of EDM (Karras et al. 2022, Table 1), for any process: with the data's standard
deviation d and r = s/a, the noise of x_t/a, the network sees a x_t of variance 1 and its target has variance 1,

  (10)  x0 = c_skip x_t + c_out F(c_in x_t),  c_skip = d^2 / (a (r^2 + d^2)),  c_out = r d / sqrt(r^2 + d^2),
        c_in = 1 / sqrt(a^2 d^2 + s^2)

so a uniform weighting of F's error is EDM's of x0's, (r^2 + d^2) / (r d)^2. Of VP with d = 1, F is -v.

`boundary` mixes the x0 of any of them with x_t, so that it is x_t itself where the network's time is 0, as consistency
models need; LCM (Luo et al. 2023) does it with T = 10 network_time and d = 0.5:

  (11)  x0' = c_skip x_t + c_out x0,   c_skip = d^2 / (T^2 + d^2),   c_out = T / sqrt(T^2 + d^2)

Learned variance (Nichol & Dhariwal 2021): `learned_variance` wraps any of them for a network with twice the channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.processes.process import MARGIN, Denoiser, Prediction, Process, expand, rates
from jaxgen.typing import Array, Cond, Float


class Parameterisation(NamedTuple):
  """A pair of inverse maps, for one process.

  Attributes:
    predict: `(output, x_t, t) -> Prediction`.
    target: `(x0, eps, t) ->` the output of a perfect network.
    learns_variance: the network has twice the channels; the second half is Prediction.variance.
    scale_input: `t -> factor` of x_t in the network's input.
  """

  predict: Callable[[Array, Array, Array], Prediction]
  target: Callable[[Array, Array, Array], Array]
  learns_variance: bool = False
  scale_input: Callable[[Array], Array] = jnp.ones_like


Parameterise = Callable[[Process], Parameterisation]  # such as `velocity`, or `partial(x0, margin=0.05)`
Apply = Callable[[Array, Array, Cond], Array]  # a network with its parameters: (x_t, network_time, cond) -> output


def _check(margin: float) -> None:
  if not 0 <= margin < 0.5:
    raise ValueError(f'the margin is {margin:g}; it is a distance from an end of time, in [0, 0.5)')


def eps(process: Process, *, margin: float | None = None) -> Parameterisation:
  """The network predicts the noise (Ho et al. 2020); gives no x0 where alpha = 0."""
  if margin is None:
    margin = 0.0 if process.num_steps else MARGIN
  _check(margin)
  if process.num_steps and not margin:
    with jax.ensure_compile_time_eval():
      if float(process.alpha(jnp.float32(1))) == 0:
        raise ValueError('nothing of the data is left at t = 1 (zero terminal SNR); have the network predict v or x0')

  def predict(output: Float[Array, 'b ...'], x_t: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Prediction:
    a, s = _coefficients(process, jnp.minimum(t, 1 - margin), x_t)
    return Prediction(x0=(x_t - s * output) / a, eps=output)  # Eq. 2

  return Parameterisation(predict, lambda x0, eps, t: eps)  # Eq. 1


def x0(process: Process, *, margin: float = MARGIN) -> Parameterisation:
  """The network predicts the data; gives no eps where sigma = 0."""
  _check(margin)

  def predict(output: Float[Array, 'b ...'], x_t: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Prediction:
    a, s = _coefficients(process, jnp.maximum(t, margin), x_t)
    return Prediction(x0=output, eps=(x_t - a * output) / s)  # Eq. 4

  return Parameterisation(predict, lambda x0, eps, t: x0)  # Eq. 3


def v(process: Process) -> Parameterisation:
  """The network predicts v, a mix of noise and data that is regular at both ends."""

  def predict(output: Float[Array, 'b ...'], x_t: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Prediction:
    a, s = _coefficients(process, t, x_t)
    d = a * a + s * s
    return Prediction(x0=(a * x_t - s * output) / d, eps=(s * x_t + a * output) / d)  # Eq. 6

  def target(x0: Float[Array, 'b ...'], eps: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Array:
    a, s = _coefficients(process, t, x0)
    return a * eps - s * x0  # Eq. 5

  return Parameterisation(predict, target)


def velocity(process: Process, *, margin: float = MARGIN) -> Parameterisation:
  """The network predicts d x_t/dt (flow matching)."""
  _check(margin)

  def inside(t: Array) -> Array:
    return jnp.clip(t, margin, 1 - margin)

  def predict(output: Float[Array, 'b ...'], x_t: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Prediction:
    a, s = _coefficients(process, t, x_t)
    da, ds = (expand(rate, x_t) for rate in rates(process, inside(t)))
    d = a * ds - da * s
    return Prediction(x0=(ds * x_t - s * output) / d, eps=(a * output - da * x_t) / d)  # Eq. 8

  def target(x0: Float[Array, 'b ...'], eps: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Array:
    da, ds = (expand(rate, x0) for rate in rates(process, inside(t)))
    return da * x0 + ds * eps  # Eq. 7

  return Parameterisation(predict, target)


def preconditioned(process: Process, *, data_std: float = 0.5, margin: float = MARGIN) -> Parameterisation:
  """The network predicts F of Eq. 10; gives no eps where sigma = 0 and no x0 where alpha = 0."""

  def coefficients(t: Array, like: Array) -> tuple[Array, Array, Array, Array]:
    a, s = _coefficients(process, jnp.clip(t, margin, 1 - margin), like)
    norm = jnp.sqrt(s * s + (a * data_std) ** 2)
    return a, s, a * data_std**2 / norm**2, s * data_std / norm  # alpha, sigma, c_skip, c_out

  def predict(output: Float[Array, 'b ...'], x_t: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Prediction:
    a, s, skip, out = coefficients(t, x_t)
    data = skip * x_t + out * output
    return Prediction(x0=data, eps=(x_t - a * data) / s)

  def target(x0: Float[Array, 'b ...'], eps: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Array:
    a, s, skip, out = coefficients(t, x0)
    return (x0 - skip * (a * x0 + s * eps)) / out

  def scale_input(t: Float[Array, ' b']) -> Float[Array, ' b']:
    return jax.lax.rsqrt((process.alpha(t) * data_std) ** 2 + process.sigma(t) ** 2)

  return Parameterisation(predict, target, scale_input=scale_input)


def boundary(parameterisation: Parameterise, *, data_std: float = 0.5, scale: float = 10.0) -> Parameterise:
  """Eq. 11 on top of what the network predicts; LCM is `boundary(eps)`, sampled by samplers/consistency.py.

  Args:
    parameterisation: the meaning of the network's output.
    data_std: d.
    scale: T over the network's time.
  """

  def bounded(process: Process) -> Parameterisation:
    inner, of_x0 = parameterisation(process), x0(process)

    def coefficients(t: Array, like: Array) -> tuple[Array, Array]:
      time = expand(scale * process.network_time(t), like)
      return data_std**2 / (time**2 + data_std**2), time * jax.lax.rsqrt(time**2 + data_std**2)

    def predict(output: Float[Array, 'b ...'], x_t: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Prediction:
      prediction, (skip, out) = inner.predict(output, x_t, t), coefficients(t, x_t)
      return of_x0.predict(skip * x_t + out * prediction.x0, x_t, t)

    def target(x0: Float[Array, 'b ...'], eps: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Array:
      (a, s), (skip, out) = _coefficients(process, t, x0), coefficients(t, x0)
      x_t = a * x0 + s * eps
      within = of_x0.predict((x0 - skip * x_t) / out, x_t, t)
      return inner.target(within.x0, within.eps, t)

    return inner._replace(predict=predict, target=target)

  return bounded


def learned_variance(parameterisation: Parameterise) -> Parameterise:
  """The network has twice the channels: the second half places the reverse step's variance in its range."""
  return lambda process: parameterisation(process)._replace(learns_variance=True)


def denoiser(apply: Apply, process: Process, parameterisation: Parameterise) -> Denoiser:
  """Joins a network to its process: `denoise(x_t, t, cond) -> Prediction`, in float32 whatever the network's dtype.

  Args:
    apply: `(x_t, network_time, cond) -> output`.
    process: the process that corrupted x_t.
    parameterisation: the meaning of the output, such as `velocity` or `partial(x0, margin=0.05)`.
  """
  space = parameterisation(process)

  def denoise(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
    seen = expand(space.scale_input(t), x_t) * x_t
    output = apply(seen, process.network_time(t), cond).astype(jnp.float32)
    channels = x_t.shape[-1]
    wanted = 2 * channels if space.learns_variance else channels
    if output.shape[-1] != wanted:
      raise ValueError(
        f'the network puts out {output.shape[-1]} channels for images of {channels}, and {wanted} are wanted: '
        'a learned variance takes twice the channels, anything else takes as many'
      )
    prediction = space.predict(output[..., :channels], x_t, t)
    return prediction._replace(variance=output[..., channels:]) if space.learns_variance else prediction

  return denoise


def score(process: Process, prediction: Prediction, t: Float[Array, ' b']) -> Float[Array, 'b ...']:
  """The gradient of log p_t(x_t); infinite where sigma = 0.  # Eq. 9"""
  return -prediction.eps / expand(process.sigma(t), prediction.eps)


def _coefficients(process: Process, t: Array, like: Array) -> tuple[Array, Array]:
  return expand(process.alpha(t), like), expand(process.sigma(t), like)
