"""Detects a run without progress, logs where every thread is, and saves what can be saved.

The main thread reports what it does (`at`, `step`). If it is silent for longer than

  max(seconds, 20 times the median time of a step)

the stacks of all threads go to the log. The `jaxgen` program then saves the state, unless the main thread hangs within
a step or a save, when there is no whole state, and ends: with 75 when what was done is saved, else with 1. A library
does not end its process: where the main thread waits for data it raises there.
"""

import collections
import contextlib
import faulthandler
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_MULTIPLE = 20  # times the median step
SAVE_SECONDS = 120.0  # that a save may take once the process is to end
_STEP_SECONDS = 60.0  # for the main thread to come out of a step
_SAY_SECONDS = 5.0
_LOOK_SECONDS = 2.0  # between two looks of who waits for data; a batch that is only slow is waited for


class Watchdog:
  """Watches the main thread of a run from a thread of its own, within a `with` block.

  Args:
    seconds: shortest silence that is taken for a hang; None for no watching.
    end: called on this thread with what to say and whether the state is saved, to end the process; None only says it.
  """

  def __init__(self, *, seconds: float | None, end: Callable[[str, bool], Any] | None):
    self._seconds, self._end = seconds, end
    self._where, self._since = 'the start', time.monotonic()
    self._steps: collections.deque[float] = collections.deque(maxlen=101)
    self._stepped: float | None = None
    self._lock = threading.RLock()
    self._patience = _STEP_SECONDS  # seconds that `rescue` waits for a main thread that has the lock
    self._save: Callable[[], Any] | None = None
    self._done = threading.Event()
    self.stalled: str | None = None

  def at(self, where: str) -> None:
    """The main thread begins work of that name; the step that contains it does not count for the median."""
    self._where, self._since, self._stepped, self.stalled = where, time.monotonic(), None, None

  def step(self, step: int) -> None:
    """The main thread has finished a step."""
    now = time.monotonic()
    if self._stepped is not None:
      self._steps.append(now - self._stepped)
    self._where, self._since, self._stepped, self.stalled = f'step {step}', now, now, None

  @property
  def limit(self) -> float | None:
    """Seconds of silence that are taken for a hang."""
    if self._seconds is None or not self._steps:
      return self._seconds
    return max(self._seconds, _MULTIPLE * statistics.median(self._steps.copy()))

  @contextlib.contextmanager
  def no_whole_state(self, seconds: float = _STEP_SECONDS) -> Iterator[Callable[[Callable[[], Any] | None], None]]:
    """The main thread changes or saves the state: `rescue` waits so long for the end of the block.

    Gives the function that says how the state after it is saved; None where it cannot be.
    """
    with self._lock:
      before, self._patience = self._patience, max(seconds, self._patience)
      yield self._set_save
      self._patience = before

  def leaves(self) -> None:
    """The main thread is about to save and end: from here on `rescue` waits for it."""
    self._lock.acquire()
    self._patience = SAVE_SECONDS

  def _set_save(self, save: Callable[[], Any] | None) -> None:
    self._save = save

  def rescue(self) -> str:
    """Saves in the place of a main thread that hangs, and never lets it continue; returns the outcome."""
    return 'what was done is saved' if self._rescue() else 'what came after the newest checkpoint could not be saved'

  def _rescue(self) -> bool:
    if self._save is None or not self._lock.acquire(timeout=self._patience):
      return False
    saved, save = threading.Event(), self._save

    def work() -> None:
      save()
      saved.set()

    threading.Thread(target=work, name='jaxgen-rescue', daemon=True).start()
    return saved.wait(SAVE_SECONDS)

  def __enter__(self) -> 'Watchdog':
    self._since = time.monotonic()
    if self._seconds is not None:
      threading.Thread(target=self._watch, name='jaxgen-watchdog', daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    self._done.set()
    self._save = None

  def _watch(self) -> None:
    while not self._done.wait(min(1.0, (self._seconds or 1.0) / 10)):
      since, limit = self._since, self.limit
      if limit is None or self.stalled or time.monotonic() - since <= limit:
        continue
      why = f'no progress for {time.monotonic() - since:.0f} s (stall_seconds) since {self._where!r}'
      _say(f'jaxgen: {why}; where every thread is:')
      if self._since != since:  # it has moved after all
        continue
      if self._end is not None:
        self._end(why, self._rescue())
      self.stalled = why


def _say(text: str) -> None:
  """Writes a line and the stacks of all threads to the log, which may hang as well."""

  def work() -> None:
    print(text, file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  thread.join(_SAY_SECONDS)


class Waiting:
  """An iterator whose items are made on a thread, so that whoever waits for one can do something else.

  Args:
    source: the iterator; closed by its thread, or left behind if that hangs.
  """

  def __init__(self, source: Any):
    self._source = source
    self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
    self._made: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._work, name='jaxgen-batches', daemon=True)
    self._thread.start()

  def next(self, meanwhile: Callable[[], None]) -> Any:
    """The next item; calls `meanwhile`, which may raise, every two seconds until it is there."""
    self._requests.put(True)
    while True:
      try:
        item, error = self._made.get(timeout=_LOOK_SECONDS)
      except queue.Empty:
        meanwhile()
        continue
      if error is not None:
        raise error
      return item

  def close(self) -> None:
    self._requests.put(False)
    self._thread.join(2.0)

  def _work(self) -> None:
    while self._requests.get():
      try:
        self._made.put((next(self._source), None))
      except BaseException as error:
        self._made.put((None, error))
    self._source.close()
