"""The best model of a run, RUN/best: parameters, averages and the objective's state where a metric was lowest so far.

It is a checkpoint without the optimizers' state, so that it can be sampled and exported, and not trained further. The
metric's name and value are in its identity.
"""

import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxgen import distributed
from jaxgen.checkpoint import Checkpoints, Policy
from jaxgen.train_state import TrainState

FOLDER = 'best'


class Best:
  """Keeps the model with the lowest value of a metric.

  Args:
    workdir: the run's folder.
    metric: name of the metric, without its number of samples: 'fid' is also fid_2k. None keeps nothing.
    resumes: whether the run resumes from a checkpoint; a new run starts over.
  """

  def __init__(self, workdir: epath.Path, metric: str | None, *, resumes: bool):
    self._folder, self._metric = workdir / FOLDER, metric
    self._checkpoints: Checkpoints | None = None
    self._value = float('inf')
    if not resumes and distributed.is_first() and self._folder.exists():
      self._folder.rmtree()
    if resumes and metric and self._folder.exists():
      self._open()

  def _open(self) -> Checkpoints:
    if self._checkpoints is None:
      self._checkpoints = Checkpoints(self._folder, Policy(keep=1))
      if self._checkpoints.latest() is not None:
        self._value = float(self._checkpoints.identity()['best']['value'])
    return self._checkpoints

  def is_better(self, values: Mapping[str, float]) -> bool:
    """Whether an evaluation found a lower value than any before; all processes call it, and the first one decides."""
    if self._metric is None:
      return False
    found = self._found(values)
    return bool(distributed.agree(int(found is not None and found[1] < self._value)))

  def save(self, state: TrainState, identity: Mapping[str, Any], values: Mapping[str, float]) -> None:
    """Saves the model of a better evaluation, and returns when the save is committed."""
    name, self._value = self._found(values) or (self._metric, self._value)
    checkpoints = self._open()
    best = {'metric': name, 'value': self._value}
    checkpoints.save(state.replace(opt_state={}), {**identity, 'best': best})
    checkpoints.wait()

  def close(self) -> None:
    if self._checkpoints is not None:
      self._checkpoints.close()

  def _found(self, values: Mapping[str, float]) -> tuple[str, float] | None:
    """The metric among an evaluation's values; processes but the first have none."""
    pattern = re.compile(rf'{re.escape(self._metric or "")}(_\d+k?)?')
    return next(((name, float(value)) for name, value in values.items() if pattern.fullmatch(name)), None)
