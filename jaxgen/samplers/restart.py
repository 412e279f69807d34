"""Restart sampling (Xu et al. 2023): a deterministic solver that goes back to noise in between, and down again.

At the time `low` of an interval, which the grid visits, `repeats` times:

  (1)  x_high = (alpha_high/alpha_low) x_low + sqrt(sigma_high^2 - (alpha_high/alpha_low)^2 sigma_low^2) z
  (2)  x_low from x_high, by the solver, at the interval's own times

The noise of Eq. 1 contracts the errors that were made before; Eq. 2 makes small ones of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers.noise import required, step_noise
from jaxgen.samplers.sampler import Solver, Times
from jaxgen.typing import Array, Cond, Float, Key


class Interval(NamedTuple):
  """Where to go back.

  Attributes:
    times: decreasing, from `high` to `low`.
    repeats: number of repeats.
  """

  times: Times
  repeats: int = 1


def restart(solve: Solver, intervals: Sequence[Interval]) -> Solver:
  """`solve` with restarts; the sampler's times must have the last time of each interval.

  Args:
    solve: a solver of the ODE, such as heun.
    intervals: intervals in the order in which they are reached.
  """

  def solver(
    denoise: Denoiser,
    process: Process,
    x: Float[Array, 'b ...'],
    times: Times,
    *,
    cond: Cond | None = None,
    keys: Key[Array, ' b'] | None = None,
  ) -> Float[Array, 'b ...']:
    keys, grid, begin, count = required(keys, 'restart'), np.asarray(times, np.float32), 0, 0
    for interval in intervals:
      end = _place(grid, interval)
      if end < begin:
        raise ValueError(f'the restart at {interval.times[-1]} comes after one at an earlier time; order them by time')
      x = solve(denoise, process, x, grid[begin : end + 1], cond=cond, keys=keys) if end > begin else x
      x = _restarted(solve, denoise, process, x, interval, cond, keys, count)
      begin, count = end, count + interval.repeats
    return solve(denoise, process, x, grid[begin:], cond=cond, keys=keys)

  return solver


def _restarted(
  solve: Solver,
  denoise: Denoiser,
  process: Process,
  x: Array,
  interval: Interval,
  cond: Cond | None,
  keys: Array,
  count: int,
) -> Array:
  high, low = jnp.float32(interval.times[0]), jnp.float32(interval.times[-1])
  grow = process.alpha(high) / process.alpha(low)
  std = jnp.sqrt(process.sigma(high) ** 2 - (grow * process.sigma(low)) ** 2)

  def again(x: Array, i: Array) -> tuple[Array, None]:
    x = grow * x + std * step_noise(keys, i, x)  # Eq. 1
    return solve(denoise, process, x, interval.times, cond=cond, keys=keys), None  # Eq. 2

  return jax.lax.scan(again, x, count + jnp.arange(interval.repeats))[0]


def _place(grid: np.ndarray, interval: Interval) -> int:
  """Where in the grid the interval's last time is."""
  places = np.flatnonzero(np.isclose(grid, interval.times[-1], atol=1e-6))
  if interval.times[0] <= interval.times[-1] or interval.repeats < 1:
    raise ValueError(f'a restart goes from {interval.times[-1]} back to {interval.times[0]}, {interval.repeats} times')
  if not len(places):
    raise ValueError(f'the restart at {interval.times[-1]} is at none of the times {grid.round(4).tolist()}')
  return int(places[0])
