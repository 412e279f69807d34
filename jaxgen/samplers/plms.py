"""PLMS, the linear multistep method that Stable Diffusion shipped with: PNDM without its Runge-Kutta steps (Liu et al.
2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds").

Every step is DDIM's with a prediction e' in place of e = eps, from up to four calls of the network, the last first:

  (1)  e' = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24
  (2)  e' = (23 e_0 - 16 e_1 + 5 e_2)/12              while there are three
  (3)  e' = (3 e_0 - e_1)/2                           while there are two

The first step is Heun's: DDIM with e_0 leads to y, and the step is taken again from the same x with (e_0 + e(y))/2; so
there is one call more than there are steps. Order 2 at the start, 4 later on even times.

Differs from Liu et al.: what is averaged is what the network predicts, `space` (v of Stable Diffusion 2), as the
published code has it.
"""

import jax
import jax.numpy as jnp

from jaxgen.processes import parameterisation
from jaxgen.processes.parameterisation import Parameterise
from jaxgen.processes.process import Denoiser, Prediction, Process, expand
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key

# Weights of the predictions, the last first, by the number of those before this one.
_WEIGHTS = ((1, 0, 0, 0), (3 / 2, -1 / 2, 0, 0), (23 / 12, -16 / 12, 5 / 12, 0), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  space: Parameterise = parameterisation.eps,
) -> Float[Array, 'b ...']:
  """Samples from `x` at times[0] to times[-1], one network call a step and one more.

  Args:
    space: quantity that is averaged over steps: the network's prediction.
  """
  times, seen = jnp.asarray(times), space(process)

  def call(x: Array, time: Array) -> Array:
    t = jnp.full(x.shape[:1], time)
    prediction = denoise(x, t, cond or {})
    return seen.target(prediction.x0, prediction.eps, t)

  def go(x: Array, output: Array, time: Array, to: Array) -> Array:
    t, s = jnp.full(x.shape[:1], time), jnp.full(x.shape[:1], to)
    made: Prediction = seen.predict(output, x, t)
    return expand(process.alpha(s), x) * made.x0 + expand(process.sigma(s), x) * made.eps

  first = call(x, times[0])
  if len(times) == 2:
    return go(x, first, times[0], times[1])
  second = call(go(x, first, times[0], times[1]), times[1])
  x = go(x, (first + second) / 2, times[0], times[1])

  def step(carry: tuple[Array, tuple[Array, ...]], at: tuple[Array, Array, Array]) -> tuple[tuple, None]:
    (x, past), (t, s, weights) = carry, at
    now = (call(x, t), *past)
    output = sum((weights[j] * output for j, output in enumerate(now)), jnp.zeros_like(x))  # Eqs. 1 to 3
    return (go(x, output, t, s), now[:3]), None

  table = jnp.asarray([_WEIGHTS[min(i + 1, 3)] for i in range(len(times) - 2)])
  past = (first, jnp.zeros_like(x), jnp.zeros_like(x))
  return jax.lax.scan(step, (x, past), (times[1:-1], times[2:], table))[0][0]
