"""SIGTERM and Ctrl-C. They are heard by a thread of their own, also while the main one is in a compiler or waits for a
device, and raise nothing there: a callback of JAX swallows a KeyboardInterrupt, or crashes under it.

The first signal asks the run to stop: its loop sees that between two steps, saves and ends. Where the process is the
`jaxgen` program (`exits`), the thread ends it

  at once                      while there is nothing new to save, before the first step
  after `GRACE` seconds        when the main thread has not come to it: saved by `rescue` if that can be
  at the second Ctrl-C         at once

A launcher starts a run again that ended with 75; Ctrl-C ends with 130.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

GRACE = {signal.SIGTERM: 15.0, signal.SIGINT: 5.0}  # a cloud kills 30 s after SIGTERM; a person presses once more
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
_FLUSH_SECONDS = 2.0
_END_SECONDS = 30.0


class Signals:
  """The signals that this process received.

  Attributes:
    received: the first signal, or None.
    unsaved: the run has steps that no checkpoint holds; the loop sets it.
    stepped: the run has made a step; the loop sets it.
    rescue: saves the state in the place of a main thread that hangs, in bounded time; returns the outcome.
    alone: the process may leave by itself when it does not come to it; not so where several leave together.
    leave: how it leaves before the first step, by exit code and reason.
    exits: the process may be ended from another thread: it is the `jaxgen` program.
  """

  def __init__(self, *, exits: bool):
    self.exits = exits
    self.received: signal.Signals | None = None
    self.unsaved = self.stepped = False
    self.alone = True
    self.leave: Callable[[int, str], None] = leave
    self.rescue: Callable[[], str] = lambda: 'nothing was saved'
    self._presses = 0

  def hear(self, number: int) -> None:
    """Notes a signal; called by the handler and by the thread, in any order, both for each signal."""
    if self.received is None:
      self.received = signal.Signals(number)

  def act(self, number: int) -> None:
    """The thread's reaction to a signal, where it may end the process."""
    self.hear(number)
    self._presses += number == signal.SIGINT
    assert self.received is not None
    code = EXIT_CODES[self.received]
    if self._presses > 1:
      leave(code, 'interrupted for the second time; the run goes on from its newest checkpoint')
    if not self.unsaved and (self.alone or not self.stepped):
      self.leave(code, f'told to stop ({self.received.name}); there was nothing new to save')
    if number == self.received and self.alone:
      threading.Thread(target=self._insist, name='jaxgen-insist', daemon=True).start()

  def _insist(self) -> None:
    assert self.received is not None
    threading.Event().wait(GRACE[self.received])
    # Still here: the main thread hangs, or saves at this moment, which `rescue` waits for.
    leave(EXIT_CODES[self.received], f'told to stop ({self.received.name}); {self.rescue()}')


@contextlib.contextmanager
def listening(*, exits: bool = False, sigterm: bool = True) -> Iterator[Signals]:
  """Hears SIGINT and SIGTERM within the block; outside the main thread, which alone can, nothing is ever heard.

  SIGTERM is left to others without `sigterm`: JAX hears it itself in a job of several processes. Where the process is
  not to be ended from another thread, the second Ctrl-C raises KeyboardInterrupt as usual.
  """
  signals, presses = Signals(exits=exits), []
  if threading.current_thread() is not threading.main_thread():
    yield signals
    return

  def handler(number: int, frame: object) -> None:
    signals.hear(number)
    presses.append(number == signal.SIGINT)
    if sum(presses) > 1 and not exits:
      raise KeyboardInterrupt

  with _thread_that_hears(signals.act) if exits else contextlib.nullcontext():
    before = {number: signal.signal(number, handler) for number in EXIT_CODES if sigterm or number == signal.SIGINT}
    try:
      yield signals
    finally:
      for number, handler_before in before.items():
        signal.signal(number, handler_before or signal.SIG_DFL)  # None: it was not set from Python


@contextlib.contextmanager
def insisting() -> Iterator[None]:
  """Within the block a Ctrl-C ends the process, though not before a KeyboardInterrupt had its time to clean up."""

  def act(number: int) -> None:
    if number == signal.SIGINT:
      timer = threading.Timer(GRACE[signal.SIGINT], leave, (EXIT_CODES[signal.SIGINT], 'interrupted'))
      timer.daemon = True
      timer.start()

  with _thread_that_hears(act):
    yield


@contextlib.contextmanager
def _thread_that_hears(act: Callable[[int], None]) -> Iterator[None]:
  """Calls `act` on a thread with the number of each signal that Python has a handler of."""
  read, write = os.pipe()
  os.set_blocking(write, False)
  before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

  def work() -> None:
    while numbers := os.read(read, 64):
      for number in numbers:
        if number in EXIT_CODES:
          act(number)
    os.close(read)

  threading.Thread(target=work, name='jaxgen-signals', daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(write)


def leave(code: int, why: str = '') -> None:
  """Ends the process from any thread, and runs nothing of what usually runs at an exit."""
  _bounded(lambda: _flush(f'jaxgen: {why}' if why else ''))
  os._exit(code)


def end_within(code: int, seconds: float = _END_SECONDS) -> None:
  """Lets the process end as usual, but not later: threads that hang, or a reader that is stuck, do not keep it."""
  if not _bounded(lambda: _flush('')):
    os._exit(code)
  timer = threading.Timer(seconds, os._exit, (code,))
  timer.daemon = True
  timer.start()


def _flush(text: str) -> None:
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  with contextlib.suppress(OSError, ValueError):
    if text:
      print(text, file=sys.stderr)
    sys.stderr.flush()


def _bounded(act: Callable[[], None]) -> bool:
  thread = threading.Thread(target=act, daemon=True)
  thread.start()
  thread.join(_FLUSH_SECONDS)
  return not thread.is_alive()
