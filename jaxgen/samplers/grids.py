"""Time grids: the decreasing times that a sampler visits, from noise to t = 0; float32 [n + 1] for n steps.

  (1)  uniform    t_i = 1 - i/n
  (2)  quadratic  t_i = (1 - i/n)^2: finer towards the data
  (3)  shift      processes.times.shift(grid, factor) moves any grid towards noise (SD3)

Grids of noise, which ask the process for the t of a level; the last step goes to t = 0:

  (7)  log_snr  log(alpha/sigma) uniform, i = 0 ... n-1                                          (DPM-Solver)
  (8)  karras   (sigma/alpha)^(1/rho) uniform, i = 0 ... n-1, rho = 7                            (EDM, Eq. 5)

Early stop, of any grid: the step to t = 0 is x0 as the network sees it, in every sampler,

  (9)  stopped  the times above a time `at`, `at`, and 0

A process with T steps t_k = (k + 1)/T is visited at n of its k, the last step going to t = 0:

  (4)  spaced     k = round(i (T - 1)/(n - 1)), both ends included: as IDDPM and DiT do (diffusers' "linspace")
  (5)  leading    k = i floor(T/n): DDIM's; never sees k = T-1 (diffusers' "leading")
  (6)  trailing   k = round(T - i T/n) - 1: starts at k = T-1 also with few steps (Lin et al. 2023; "trailing")

Grids are numpy, so that building a config does not touch a device; Eqs. 7 and 8 compute on the CPU.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.processes.process import Process
from jaxgen.samplers.exponential import half_log_snr, time_of
from jaxgen.typing import Float


def uniform(steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 1."""
  return (1 - _indices(steps) / steps).astype(np.float32)


def quadratic(steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 2."""
  return ((1 - _indices(steps) / steps) ** 2).astype(np.float32)


def spaced(steps: int, num_steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 4: `steps` of the `num_steps` of a discrete process."""
  return _grid(np.linspace(0, num_steps - 1, steps).round() if steps != 1 else np.array([num_steps - 1]), num_steps)


def leading(steps: int, num_steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 5: `steps` of the `num_steps` of a discrete process."""
  return _grid(_indices(steps)[:-1] * (num_steps // steps), num_steps)


def trailing(steps: int, num_steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 6: `steps` of the `num_steps` of a discrete process."""
  return _grid(np.round(num_steps - _indices(steps)[:-1] * num_steps / steps)[::-1] - 1, num_steps)


def log_snr(process: Process, steps: int, *, start: float = 1.0, end: float = 1e-3) -> Float[np.ndarray, ' n']:
  """Eq. 7: from `start` to `end` in `steps - 1` steps, and one to t = 0.

  Args:
    process: a process in which log(alpha/sigma) is finite at both; rectified flow and cosine have none at start=1.
    steps: number of steps in all.
    start: the first time.
    end: the last time before 0.
  """
  return _between(process, steps, start, end, lambda l: l, lambda level: level)


def karras(
  process: Process, steps: int, *, start: float = 1.0, end: float = 1e-3, rho: float = 7.0
) -> Float[np.ndarray, ' n']:
  """Eq. 8: finer towards the data than Eq. 7; arguments as for `log_snr`."""
  return _between(process, steps, start, end, lambda l: np.exp(-l / rho), lambda level: -rho * np.log(level))


def stopped(times: Float[np.ndarray, ' n'], at: float) -> Float[np.ndarray, ' m']:
  """Eq. 9: ends early, in x0 as it is predicted at the time `at`."""
  times = np.asarray(times, np.float32)
  if not 0 < at < times[0]:
    raise ValueError(f'the stop is at {at}; it must be after 0 and before the first time, {times[0]:g}')
  return np.append(times[times > np.float32(at)], np.asarray([at, 0], np.float32))


def _between(
  process: Process, steps: int, start: float, end: float, level_of: Callable, l_of: Callable
) -> Float[np.ndarray, ' n']:
  """Times at equal distances of a level, which is a function of l = log(alpha/sigma), and 0."""
  if not (steps >= 2 and 0 < end < start):
    raise ValueError(f'{steps} steps from start={start} to end={end}: use 2 steps or more and 0 < end < start')
  with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend='cpu')[0]):
    ends = jnp.array([start, end], jnp.float32)
    l = np.asarray(half_log_snr(process, ends), np.float64)
    if not np.isfinite(l).all():
      raise ValueError(
        f'log(alpha/sigma) is {l[0]} at start={start}, {l[1]} at end={end}: use a start below 1, as 0.99'
      )
    first, last = level_of(l)
    inner = l_of(np.linspace(first, last, steps)[1:-1])
    at = time_of(process, jnp.asarray(inner, jnp.float32), *(jnp.full(inner.shape, e) for e in ends[::-1]))
  return np.concatenate([[start], np.asarray(at), [end, 0]]).astype(np.float32)


def _indices(steps: int) -> np.ndarray:
  if steps < 1:
    raise ValueError(f'{steps} sampling steps: use 1 or more')
  return np.arange(steps + 1)


def _grid(k: np.ndarray, num_steps: int) -> Float[np.ndarray, ' n']:
  if not 1 <= len(k) <= num_steps:
    raise ValueError(f'{len(k)} sampling steps of a process with {num_steps}: use 1 to {num_steps}')
  return np.append((k[::-1] + 1) / num_steps, 0).astype(np.float32)


def fine(times: Float[np.ndarray, ' n'], steps: int = 32) -> Float[np.ndarray, ' m']:
  """`times` where they have at least `steps` steps, else a uniform grid of that many.

  A few-step model is sampled at one to four times, which are too few to inpaint by; it was trained at all times.
  """
  return times if len(times) > steps else uniform(steps)
