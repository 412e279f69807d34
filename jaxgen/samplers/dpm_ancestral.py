"""DPM-Solver++(2S) with noise, two ways: "2S ancestral", and "DPM++ SDE", both of Crowson's k-diffusion.

With nu = sigma/alpha, y = x/alpha, eta in [0, 1], and the noise of a step from nu to nu_s split as DDPM's is,

  (1)  up(nu, nu_s) = min(nu_s, eta nu_s sqrt(1 - nu_s^2/nu^2)),   down(nu, nu_s)^2 = nu_s^2 - up^2

  (2)  ancestral  y_m = x0 + nu_m eps,   nu_m^2 = nu down(nu, nu_s)
  (3)  SDE        y_m = x0 + down(nu, nu_m) eps + up(nu, nu_m) z_m,   nu_m^2 = nu nu_s
  (4)  y_s = (down/nu) y + (1 - down/nu) x0(y_m, nu_m) + up z

In Eq. 3 both noises are of one Brownian motion w(nu): z_m is its increment from nu to nu_m, and z that from nu to nu_s,
each divided by its standard deviation. A step to sigma = 0, or from alpha = 0, takes x0(x_t) in place of x0(y_m).
"""

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Prediction, Process
from jaxgen.samplers import exponential
from jaxgen.samplers.noise import required, step_noise
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


def dpm_2s_ancestral(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  eta: float = 1.0,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], two network calls a step, by Eqs. 2 and 4.

  Args:
    eta: share of noise in [0, 1]; 0 is the ODE, DPM-Solver++(2S).
  """
  return _two_stages(denoise, process, x, times, cond, keys, eta, noise_inside=False)


def dpm_sde(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  eta: float = 1.0,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], two network calls a step, by Eqs. 3 and 4.

  Args:
    eta: share of noise in [0, 1]; 0 is the ODE, DPM-Solver++(2S).
  """
  return _two_stages(denoise, process, x, times, cond, keys, eta, noise_inside=True)


def _two_stages(
  denoise: Denoiser,
  process: Process,
  x: Array,
  times: Times,
  cond: Cond | None,
  keys: Array | None,
  eta: float,
  *,
  noise_inside: bool,
) -> Array:
  if not 0 <= eta <= 1:
    raise ValueError(f'eta is {eta}; it goes from 0 (the ODE) to 1 (as noisy as DDPM)')
  keys, times = required(keys, 'DPM-Solver++ with noise'), jnp.asarray(times)
  l, alpha, sigma = exponential.half_log_snr(process, times), process.alpha(times), process.sigma(times)
  regular = exponential.regular(l)
  nu = jnp.where(alpha > 0, sigma / jnp.maximum(alpha, 1e-20), 1e20)
  now, then = nu[:-1], nu[1:]
  up, down = _split(now, then, eta)  # Eq. 1
  inner = jnp.sqrt(jnp.where(regular, now * (then if noise_inside else down), now * now))
  up_inner, down_inner = _split(now, inner, eta) if noise_inside else (jnp.zeros_like(inner), inner)
  middle = exponential.time_of(process, -jnp.log(inner), times[1:], times[:-1])
  middle = jnp.where(regular, middle, times[:-1])
  share = jnp.where(regular, (now - inner) / jnp.maximum(now - then, 1e-20), 1.0)  # share of w's variance before nu_m

  def step(x: Array, at: tuple[Array, ...]) -> tuple[Array, None]:
    i, t, sigma, m, regular, share, up, down, up_inner, down_inner, ratio, to_alpha = at

    def predict(x: Array, time: Array) -> Prediction:
      return denoise(x, jnp.full(x.shape[:1], time), cond or {})

    first, z_m, z = predict(x, t), step_noise(keys, 2 * i, x), step_noise(keys, 2 * i + 1, x)
    y_m = first.x0 + down_inner * first.eps + up_inner * z_m  # Eqs. 2 and 3
    x0 = jax.lax.cond(regular, lambda: predict(process.alpha(m) * y_m, m).x0, lambda: first.x0)
    z = jnp.sqrt(share) * z_m + jnp.sqrt(1 - share) * z if noise_inside else z
    y = down * x / sigma + (1 - ratio) * x0 + up * z  # Eq. 4, y/nu = x/sigma
    return to_alpha * y, None

  at = (jnp.arange(len(now)), times[:-1], sigma[:-1], middle, regular, share, up, down, up_inner, down_inner)
  return jax.lax.scan(step, x, (*at, down / now, alpha[1:]))[0]


def _split(now: Float[Array, ' n'], then: Float[Array, ' n'], eta: float) -> tuple[Array, Array]:
  """up and down of Eq. 1."""
  up = jnp.minimum(then, eta * then * jnp.sqrt(jnp.maximum(1 - (then / now) ** 2, 0.0)))
  return up, jnp.sqrt(jnp.maximum(then**2 - up**2, 0.0))
