"""Where a run's time goes, summed over all its restarts: the share spent on steps that were kept is its goodput.

  init, restore, compile     before the first step of a life
  step, input                steps, and waiting for their data
  checkpoint, evaluation     within the run, where they hold it up
  lost                       steps of a life after the checkpoint from which the next one resumed
  down                       between the end of a life and the start of the next

The sums are kept in the run's folder, goodput.json, at each line of metrics.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from jaxgen import files

NAME = 'goodput.json'
STATES = ('init', 'restore', 'compile', 'step', 'input', 'checkpoint', 'evaluation', 'lost', 'down')


class Goodput:
  """The clock of one life, on top of the sums of those before.

  Args:
    workdir: the run's folder; None for a life on its own.
    resume_step: step of the checkpoint from which this life resumes; None for none.
  """

  def __init__(self, workdir: str | os.PathLike | None, *, resume_step: int | None = None):
    self._seconds = dict.fromkeys(STATES, 0.0)
    if workdir is not None:
      _add_earlier_lives(self._seconds, files.read_json_object(epath.Path(workdir) / NAME) or {}, resume_step or 0)
    self._state, self._since = 'init', time.perf_counter()
    self._step_seconds = 0.0

  def enter(self, state: str) -> None:
    """Counts the time from now on for this state."""
    now = time.perf_counter()
    self._seconds[self._state] += now - self._since
    self._state, self._since = state, now

  @contextlib.contextmanager
  def within(self, state: str) -> Iterator[None]:
    """Counts the time of the block for this state, not for the one around it."""
    around = self._state
    self.enter(state)
    try:
      yield
    finally:
      self.enter(around)

  def window(self, step_seconds: float, waited: float) -> None:
    """Notes a window of steps: the seconds of one, and those of all that were spent waiting for data."""
    self.enter(self._state)
    moved = min(waited, self._seconds['step'])
    self._seconds['step'] -= moved
    self._seconds['input'] += moved
    self._step_seconds = step_seconds

  @property
  def seconds(self) -> dict[str, float]:
    self.enter(self._state)
    return dict(self._seconds)

  @property
  def share(self) -> float:
    """Goodput, in [0, 1]."""
    seconds = self.seconds
    return seconds['step'] / max(sum(seconds.values()), 1e-9)

  def record(self, step: int) -> str:
    """The content of goodput.json as of a step."""
    seconds = {state: round(value, 3) for state, value in self.seconds.items()}
    kept = {'seconds': seconds, 'step': step, 'step_seconds': self._step_seconds, 'time': round(time.time(), 3)}
    return json.dumps(kept) + '\n'


def _add_earlier_lives(seconds: dict[str, float], kept: Mapping[str, Any], resume_step: int) -> None:
  """The sums of earlier lives; of the last one the steps that are done again are lost. A damaged file adds nothing."""
  before = kept.get('seconds')
  if not isinstance(before, dict):
    return
  for state in STATES:
    seconds[state] += _number(before.get(state))
  lost = min(max(_number(kept.get('step')) - resume_step, 0.0) * _number(kept.get('step_seconds')), seconds['step'])
  seconds['step'] -= lost
  seconds['lost'] += lost
  if stopped := _number(kept.get('time')):
    seconds['down'] += max(time.time() - stopped, 0.0)


def _number(value: Any) -> float:
  return float(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 0 else 0.0


def read(workdir: str | os.PathLike) -> dict[str, float]:
  """The seconds of each state of a run, by what its folder holds; {} where it holds nothing."""
  kept = (files.read_json_object(epath.Path(workdir) / NAME) or {}).get('seconds')
  return {state: _number(kept.get(state)) for state in STATES} if isinstance(kept, dict) else {}
