"""UniPC (Zhao et al. 2023): a predictor, and a corrector that costs no network call; orders 1 to 3, data prediction.

With f_i = x0 at (y_i, t_i), and w of Eq. 3 of samplers/exponential.py for the step from t to s:

  (1)  base(x, f) = sigma_s/sigma_t x + (alpha_s - alpha_t sigma_s/sigma_t) f
  (2)  UniP   y_{i+1} = base(x_i, f_i) + alpha_{i+1} sum_j w_j (f_{i-j} - f_i),   j = 1 ... order - 1
  (3)  UniC   x_{i+1} = base(x_i, f_i) + alpha_{i+1} (w_0 (f_{i+1} - f_i) + sum_j w_j (f_{i-j} - f_i))

f_{i+1} is that of the predicted y_{i+1}, and serves the next step as well: one network call a step. A sum of one term
takes the weights of B(h), which is bh1 or bh2; longer ones do not depend on it.

Corrected order is order + 1. The last step is only predicted. The first steps have lower orders, and so have the last,
as in the authors' code: the predictor is of order 2 in the step before the last, and of order 1 in the last.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers import exponential
from jaxgen.samplers.exponential import bh2, data
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


def unipc(
  denoise: Denoiser,
  process: Process,
  x: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond | None = None,
  keys: Key[Array, ' b'] | None = None,
  order: int = 2,
  second: exponential.Second = bh2,
  lower_final_below: float = math.inf,
) -> Float[Array, 'b ...']:
  """Integrates from `x` at times[0] to times[-1], one network call a step.

  Args:
    order: 1 to 3, of the predictor.
    second: B(h), exponential.bh1 or exponential.bh2.
    lower_final_below: a run of fewer steps than this ends with lower orders; 0 for the full order.
  """
  exponential.check_order(order, 'unipc')
  times = jnp.asarray(times)
  lower_final = len(times) - 1 < lower_final_below
  l, alpha, sigma = exponential.half_log_snr(process, times), process.alpha(times), process.sigma(times)
  one = jnp.ones((), l.dtype)
  past = partial(exponential.past_weights, second=second, lower_final=lower_final)
  of_x = sigma[1:] / sigma[:-1]
  of_f = alpha[1:] - alpha[:-1] * of_x
  forward = of_x, of_f, alpha[1:, None] * past(l, order, data.sign)
  back = of_x, of_f, alpha[1:, None] * past(l, order, data.sign, ends=(one,))
  # The corrector belongs to the step before; before the first step, it leaves x as it is.
  back = [jnp.concatenate([jnp.full_like(a[:1], first), a[:-1]]) for a, first in zip(back, (1, 0, 0), strict=True)]

  def move(x: Array, f: Array, others: tuple[Array, ...], coefficients: tuple[Array, ...]) -> Array:
    of_x, of_f, of_others = coefficients
    x = of_x * x + of_f * f  # Eq. 1
    for j, other in enumerate(others):
      x += of_others[j] * (other - f)
    return x

  def step(carry: tuple[Array, Array, tuple[Array, ...]], at: tuple) -> tuple[tuple, None]:
    (x, y, past), (t, back, forward) = carry, at
    f = denoise(y, jnp.full(x.shape[:1], t), cond or {}).x0
    x = move(x, past[0], (f, *past[1:]), back)  # Eq. 3, from the time before to t
    y = move(x, f, past[: order - 1], forward)  # Eq. 2
    return (x, y, (f, *past[:-1])), None

  start = x, x, (jnp.zeros_like(x),) * order
  return jax.lax.scan(step, start, (times[:-1], tuple(back), forward))[0][1]
