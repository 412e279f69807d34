"""Observers of a run, such as TensorBoard, the report or the progress line: they never stop or block it.

Each observer has a daemon thread and a short queue of calls. Whoever hands in a call goes on at once, or waits for a
bounded time where later work relies on the result. A call that raises, that finds the queue full, or that is not done
in time is counted; the first failure of each observer is a warning, and the run continues.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

_CALLS = 256  # in an observer's queue; what comes beyond is dropped and counted
_PATIENCE = 20.0  # seconds that `wait=True` waits


class Observers:
  """The observers of one run, by name.

  Args:
    warn: called once for each observer with its failure, from any thread.
    patience: seconds that a call with `wait=True` takes at most.
  """

  def __init__(self, warn: Callable[[str], None], *, patience: float = _PATIENCE):
    self._warn = warn
    self._patience = patience
    self._threads: dict[str, _Thread] = {}
    self._closed = False

  @property
  def failures(self) -> int:
    """Calls that raised, were dropped, or were not done in time, so far."""
    return sum(thread.failures for thread in self._threads.values())

  def call(self, name: str, act: Callable[[], Any], *, wait: bool = False, once: bool = False) -> bool:
    """Has an observer call `act`, after what it was given before.

    Args:
      name: the observer's name.
      act: the work; what it returns is dropped.
      once: nothing is done where an earlier call of this observer has not begun yet, since it will do the same.
      wait: return only when the work is done, or has failed, or has taken too long. An observer that is known to
        hang is not waited for again until it moves.

    Returns:
      Whether the work is known to be done.
    """
    if self._closed:
      return False
    if name not in self._threads:
      self._threads[name] = _Thread(name, self._warn)
    return self._threads[name].call(act, self._patience if wait else 0.0, once)

  def flush(self, seconds: float | None = None) -> bool:
    """Waits until every observer has done its work, for `seconds` in all; returns whether all have."""
    deadline = time.monotonic() + (self._patience if seconds is None else seconds)
    drained = [thread.drain(deadline) for thread in list(self._threads.values())]
    return all(drained)

  def close(self, seconds: float | None = None) -> None:
    """As `flush`, and takes no more calls; an observer that still hangs is left behind."""
    self.flush(seconds)
    self._closed = True
    for thread in self._threads.values():
      thread.end()


class _Thread:
  """One observer: a thread that makes the calls of its queue in order."""

  def __init__(self, name: str, warn: Callable[[str], None]):
    self.failures = 0
    self._name, self._warn, self._warned = name, warn, False
    self._queue: queue.Queue[tuple[Callable[[], Any] | None, _Result]] = queue.Queue(_CALLS)
    self._hangs = False
    threading.Thread(target=self._work, name=f'jaxgen-{name}', daemon=True).start()

  def call(self, act: Callable[[], Any], seconds: float, once: bool) -> bool:
    if once and not self._queue.empty():
      return False
    result = _Result()
    try:
      self._queue.put_nowait((act, result))
    except queue.Full:
      self._fail(f'{_CALLS} of its calls wait; later ones are dropped')
      return False
    if seconds and not self._hangs and not result.done.wait(seconds):
      self._hangs = True
      self._fail(f'it has not answered in {seconds:.0f} s')
    return result.done.is_set() and result.right

  def drain(self, deadline: float) -> bool:
    """Waits until the queue's work is done."""
    last = _Result()
    with contextlib.suppress(queue.Full):
      self._queue.put((lambda: None, last), timeout=max(deadline - time.monotonic(), 0.001))
      if last.done.wait(max(deadline - time.monotonic(), 0.001)):
        return True
    if not self._hangs:
      self._fail('it has not answered until the end')
    return False

  def end(self) -> None:
    with contextlib.suppress(queue.Full):
      self._queue.put_nowait((None, _Result()))

  def _work(self) -> None:
    while True:
      act, result = self._queue.get()
      if act is None:
        return
      try:
        act()
        result.right = True
      except Exception as error:
        self._fail(f'{type(error).__name__}: {error}')
      finally:
        self._hangs = False
        result.done.set()

  def _fail(self, why: str) -> None:
    self.failures += 1
    if not self._warned:
      self._warned = True
      self._warn(f'Warning: {self._name} failed, and the run goes on: {" ".join(why.split())}')


class _Result:
  """Whether a call is done, and whether it succeeded."""

  def __init__(self):
    self.done = threading.Event()
    self.right = False
