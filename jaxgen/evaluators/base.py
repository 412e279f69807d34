"""Evaluators run during training: each is a name, an interval and a function of the run's state."""

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from jaxgen.train_state import TrainState


class Context(NamedTuple):
  """The arguments of an evaluator.

  Attributes:
    step: train steps done.
    state: the sharded state.
    frozen: the frozen networks.
    writer: `writer.Writer`; silent on every process but the first.
    workdir: the run's folder.
    pause: raises when the run has to stop.
  """

  step: int
  state: TrainState
  frozen: Any
  writer: Any
  workdir: epath.Path
  pause: Callable[[], None] = lambda: None

  def progress(self, work: str, done: int, total: int) -> None:
    """Shows how much of long work is done; call it between pieces. Raises when the run has to stop."""
    self.writer.working(f'{work}: {min(done, total):,} of {total:,}')
    self.pause()


class Evaluator(NamedTuple):
  """A measurement that is repeated during training.

  Attributes:
    name: name of its files and clocks.
    every: interval in steps; it also runs after the last one. 0 for never.
    run: Context -> scalars by name.
    check: called before training; raises where the evaluator cannot run, for want of weights for instance.
  """

  name: str
  every: int
  run: Callable[[Context], dict[str, float]]
  check: Callable[[], Any] = lambda: None

  @property
  def clock(self) -> str:
    """The metric that says how many seconds an evaluation took, and so that it was done."""
    return f'{self.name}/seconds'
