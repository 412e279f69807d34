"""Averages of the parameters over training.

  ema <- d * ema + (1 - d) * params,    d = decay(step)                                            (1)

`step` counts the optimizer steps done, the one just taken included. A decay is a function of it:

  constant:   d = decay                                                                            (2)
  warm-up:    d = min(decay, (1 + step) / (10 + step)), so that the start is forgotten             (3)
  half-life:  d = 2^(-batch / half_life), half-life in images (Karras et al. 2024, EDM2)           (4)
  power:      d = (1 - 1/step)^(gamma + 1)                                      (EDM2, Eq. 127)     (5)

The power function's average of step T has the weights, for params of step s at most T,

  p(s) = (gamma + 1) s^gamma / T^(gamma + 1)                                                        (6)

and so a length that is a share of training: its standard deviation over s is `relative_std` times T. Such averages,
kept at some steps, are a basis in which any other profile of the family is found after training (`reconstruct`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxgen.typing import Array

Decay = Callable[[Any], Array]  # the step (int32 scalar) -> the decay, a float32 scalar in [0, 1]


class Average(NamedTuple):
  """A named average.

  Attributes:
    of: the key of `state.params` that is averaged.
    decay: decay at each step.
  """

  of: str
  decay: Decay


def constant(decay: float) -> Decay:
  """Eq. 2.

  Raises:
    ValueError: `decay` is not in [0, 1]: the average would run away.
  """
  _check(decay)
  return lambda step: jnp.float32(decay)


def warmup(decay: float) -> Decay:
  """Eq. 3; raises as `constant`."""
  _check(decay)
  return lambda step: jnp.minimum(jnp.float32(decay), (1.0 + step) / (10.0 + step))


def _check(decay: float) -> None:
  if not 0 <= decay <= 1:
    raise ValueError(f"an average's decay is {decay}; it must be in [0, 1], such as 0.9999")


def half_life(images: float, *, batch_size: int, ramp: float | None = None) -> Decay:
  """Eq. 4; with `ramp`, the half-life is at most that share of the images seen so far."""

  def decay(step):
    life = jnp.float32(images)
    if ramp is not None:
      life = jnp.minimum(life, ramp * batch_size * jnp.float32(step))
    return jnp.exp2(-batch_size / jnp.maximum(life, 1e-8))

  return decay


class Power(NamedTuple):
  """Eq. 5, as a decay; `power` makes it of a length.

  Attributes:
    exponent: gamma, greater than -1.
  """

  exponent: float

  def __call__(self, step):
    return (1.0 - 1.0 / jnp.maximum(jnp.float32(step), 1.0)) ** (self.exponent + 1.0)


class Snapshot(NamedTuple):
  """A power function's average as it was at one step.

  Attributes:
    step: optimizer steps done.
    exponent: gamma of Eq. 6.
    load: returns the tree; called once, when its turn comes.
  """

  step: int
  exponent: float
  load: Callable[[], Any]


def power(relative_std: float) -> Power:
  """Eq. 5 for a profile whose standard deviation is that share of training, such as 0.05 or 0.10.

  Raises:
    ValueError: no profile is that wide; the widest is 0.3003.
  """
  return Power(exponent_of(relative_std))


def relative_std(exponent: float) -> float:
  """The standard deviation of Eq. 6 as a share of T: sqrt((g + 1) / ((g + 2)^2 (g + 3)))."""
  return float(np.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))))


def exponent_of(relative_std: float) -> float:
  """The inverse of `relative_std`: the largest root of its cubic in gamma."""
  if relative_std <= 0:
    raise ValueError(f'the relative standard deviation of an average is {relative_std}; it must be positive')
  t = relative_std**-2.0
  roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
  real = roots[np.abs(roots.imag) < 1e-8].real
  if not (real > -0.4).any():
    raise ValueError(f'the relative standard deviation of an average is {relative_std}; it must be at most 0.3')
  return float(real.max())


def inner_product(step_a, exponent_a, step_b, exponent_b):
  """The integral over s of two profiles of Eq. 6; float64, elementwise."""
  step_a, exponent_a, step_b, exponent_b = (np.asarray(x, np.float64) for x in (step_a, exponent_a, step_b, exponent_b))
  shorter, longer = np.minimum(step_a, step_b), np.maximum(step_a, step_b)
  exponent_of_longer = np.where(step_a < step_b, exponent_b, exponent_a)
  overlap = (shorter / longer) ** exponent_of_longer / longer
  return (exponent_a + 1) * (exponent_b + 1) * overlap / (exponent_a + exponent_b + 1)


def reconstruction_weights(
  steps: Sequence[int], exponents: Sequence[float], step: int, exponent: float
) -> Float64[np.ndarray, 'n']:
  """The weights of snapshots whose sum is nearest, in the squared difference of profiles, to another profile.

  Args:
    steps, exponents: steps and exponents of the snapshots, which have to differ.
    step, exponent: step and exponent of the wanted profile.
  """
  t, g = np.asarray(steps, np.float64), np.asarray(exponents, np.float64)
  gram = inner_product(t[:, None], g[:, None], t[None], g[None])
  return np.linalg.solve(gram, inner_product(t, g, step, exponent))


def reconstruct(snapshots: Iterable[Snapshot], step: int, exponent: float) -> Any:
  """The average of any profile, from snapshots of others (EDM2, Alg. 3); one tree is held beside the sum.

  Raises:
    ValueError: there is no snapshot, or the profile ends after the last of them.
  """
  snapshots = list(snapshots)
  last = max((snapshot.step for snapshot in snapshots), default=0)
  if step > last:
    raise ValueError(f'an average of step {step} was requested, and the last snapshot is of step {last}')
  weights = reconstruction_weights([s.step for s in snapshots], [s.exponent for s in snapshots], step, exponent)
  total = None
  for weight, snapshot in zip(weights, snapshots, strict=True):
    tree = jax.tree.map(lambda x, weight=weight: np.float32(weight) * x, snapshot.load())
    total = tree if total is None else jax.tree.map(jnp.add, total, tree)
  return total
