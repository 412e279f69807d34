"""What is learned: an objective is data, a NamedTuple of pure functions.

The train step knows nothing else of a method: it runs the phases in order, and each phase differentiates
one subtree of the parameters. A GAN has two phases, a diffusion model one; a regulariser that runs every
16th step is a phase with `every=16`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxgen.typing import Array


class Aux(NamedTuple):
  """What a loss says besides its value: scalars to log, and the entries of `state.extra` it replaces."""

  metrics: Mapping[str, Array] = {}
  extra: Mapping[str, Any] = {}


class Phase(NamedTuple):
  """One optimizer update.

  Attributes:
    name: prefix of the metrics, unique among the phases.
    trains: key of `state.params`; only that subtree is differentiated and updated.
    loss: `(params, state, frozen, batch, key) -> (loss, Aux)`; `params` is the whole of `state.params`, and
      the loss is a float32 scalar, the mean over the batch.
    every: the phase runs at steps that are multiples of this (lazy regularisation).
  """

  name: str
  trains: str
  loss: Callable[..., tuple[Array, Aux]]
  every: int = 1


class Objective(NamedTuple):
  """A way to learn a generator.

  Attributes:
    init: `(key, batch) -> {'params': {name: tree}, 'extra': {name: tree}}`; `batch` gives the shapes.
    phases: the updates of one train step, in order.
    sample: `(params, frozen, cond, keys) -> images`, float32 `b h w c` in [-1, 1]; `params` as in
      `state.params` (usually averaged), `keys` one PRNG key for each image.
  """

  init: Callable[..., dict[str, Any]]
  phases: tuple[Phase, ...]
  sample: Callable[..., Array]
