"""Time grids: the decreasing times that a sampler visits, from noise to t = 0; float32 [n + 1] for n steps.

  (1)  uniform    t_i = 1 - i/n
  (2)  quadratic  t_i = (1 - i/n)^2: finer towards the data
  (3)  shift      processes.times.shift(grid, factor) moves any grid towards noise (SD3)

A process with T steps t_k = (k + 1)/T is visited at n of its k, the last step going to t = 0:

  (4)  spaced     k = round(i (T - 1)/(n - 1)), both ends included: as IDDPM and DiT do (diffusers' "linspace")
  (5)  leading    k = i floor(T/n): DDIM's; never sees k = T-1 (diffusers' "leading")
  (6)  trailing   k = round(T - i T/n) - 1: starts at k = T-1 also with few steps (Lin et al. 2023; "trailing")

Grids are numpy, so that building a config does not touch a device.
"""

import numpy as np

from jaxgen.typing import Float


def uniform(steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 1."""
  return (1 - np.arange(steps + 1) / steps).astype(np.float32)


def quadratic(steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 2."""
  return ((1 - np.arange(steps + 1) / steps) ** 2).astype(np.float32)


def spaced(steps: int, num_steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 4: `steps` of the `num_steps` of a discrete process."""
  return _grid(np.linspace(0, num_steps - 1, steps).round() if steps > 1 else np.array([num_steps - 1]), num_steps)


def leading(steps: int, num_steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 5: `steps` of the `num_steps` of a discrete process."""
  return _grid(np.arange(steps) * (num_steps // steps), num_steps)


def trailing(steps: int, num_steps: int) -> Float[np.ndarray, ' n']:
  """Eq. 6: `steps` of the `num_steps` of a discrete process."""
  return _grid(np.round(num_steps - np.arange(steps) * num_steps / steps)[::-1] - 1, num_steps)


def _grid(k: np.ndarray, num_steps: int) -> Float[np.ndarray, ' n']:
  if len(k) > num_steps:
    raise ValueError(f'{len(k)} sampling steps of a process with {num_steps}: use at most {num_steps}')
  return np.append((k[::-1] + 1) / num_steps, 0).astype(np.float32)
