"""TensorBoard's event files. Each method may raise or hang: call it as an observer.

tensorboardX makes the events and the file format; its own SummaryWriter hands them to a thread that a full disk ends,
after which it blocks for ever.
"""

import itertools
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from jaxgen import files
from jaxgen.typing import UInt8

_FLUSH_SECONDS = 30.0
_EVENTS = 5000  # in a file of a bucket, which is uploaded whole at each flush


class EventFiles:
  """The event files of one process.

  Args:
    folder: the folder that TensorBoard reads.
    purge_step: events of this step and later are no longer shown; 0 deletes all that is there.
  """

  def __init__(self, folder: epath.Path, *, purge_step: int):
    self._folder, self._purge_step = folder, purge_step
    self._file: Any = None
    self._numbers = itertools.count()
    self._events = 0
    self._flushed = 0.0

  def start(self) -> None:
    if self._purge_step == 0 and self._folder.exists():
      self._folder.rmtree()
    self._add(session_log={'status': 1}, step=self._purge_step)  # START

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._add(step=step, summary={'value': [{'tag': name, 'simple_value': value} for name, value in values.items()]})

  def image(self, step: int, name: str, image: UInt8[np.ndarray, 'h w c']) -> None:
    try:
      from tensorboardX import summary
    except ModuleNotFoundError:
      return
    self._add(step=step, summary=summary.image(name, image, dataformats='HWC'))

  def close(self) -> None:
    file, self._file = self._file, None
    if file is not None:
      file.close()

  def _add(self, **fields: Any) -> None:
    """Writes one event; a file that failed is left as it is, and the next event begins a new one."""
    try:
      from tensorboardX.event_file_writer import EventsWriter
      from tensorboardX.proto.event_pb2 import Event  # pyrefly: ignore[missing-module-attribute]
    except ModuleNotFoundError:
      return
    try:
      if self._file is None:
        if not files.in_bucket(self._folder):
          self._folder.mkdir(parents=True, exist_ok=True)
        # The suffix keeps files apart that begin in one second: their names carry only the time.
        suffix = f'.from_{self._purge_step}.{os.getpid()}.{next(self._numbers)}'
        self._file, self._events = EventsWriter(os.fspath(self._folder / 'events'), suffix), 0
      self._file.write_event(Event(wall_time=time.time(), **fields))
      self._events += 1
      if time.monotonic() - self._flushed > _FLUSH_SECONDS:
        self._file.flush()
        self._flushed = time.monotonic()
    except Exception:
      self._file = None
      raise
    if self._events >= _EVENTS and files.in_bucket(self._folder):
      self.close()
