"""Destinations of a run's metrics and pictures beside its folder: `train(..., writers=[wandb('project')])`.

A destination observes: each of its calls is made in order on a thread of its own, and one that fails or hangs costs a
warning and a count, never the run (observers.py). The first process alone has any.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgen.typing import UInt8


def _nothing(*_: Any) -> None:
  pass


class Destination(NamedTuple):
  """A destination of metrics, called in this order.

  Attributes:
    name: name in warnings.
    start: `(folder, config)`, before all else: the run's folder and what config.json holds. Again at each stage.
    scalars: `(step, values)`, of every line of metrics.
    image: `(step, name, picture)`, of every grid.
    close: called at the end of the process.
  """

  name: str
  start: Callable[[str, Mapping[str, Any]], Any] = _nothing
  scalars: Callable[[int, Mapping[str, float]], Any] = _nothing
  image: Callable[[int, str, UInt8[np.ndarray, 'h w 3']], Any] = _nothing
  close: Callable[[], Any] = _nothing


def wandb(project: str, **options: Any) -> Destination:
  """Weights & Biases; a resumed run is the same run there, known by its folder.

  Args:
    project: the project's name.
    options: other arguments of `wandb.init`, such as `entity`, `tags` or `mode='offline'`.

  Raises:
    ValueError: wandb is not installed.
  """
  try:
    import wandb as library
  except ModuleNotFoundError as error:
    raise ValueError("Weights & Biases need wandb: pip install 'jaxgen[wandb]'") from error
  runs: list[Any] = []

  def start(folder: str, config: Mapping[str, Any]) -> None:
    if runs:
      return
    place = folder if '://' in folder else os.path.abspath(folder)
    about = {
      'project': project,
      'name': os.path.basename(place.rstrip('/')),
      'id': hashlib.sha256(place.encode()).hexdigest()[:16],
      'resume': 'allow',
      'config': dict(config),
    }
    runs.append(library.init(**(about | options)))

  def scalars(step: int, values: Mapping[str, float]) -> None:
    runs[0].log(dict(values), step=step)

  def image(step: int, name: str, picture: UInt8[np.ndarray, 'h w 3']) -> None:
    runs[0].log({name: library.Image(picture)}, step=step)

  return Destination('wandb', start, scalars, image, lambda: [run.finish() for run in runs])
