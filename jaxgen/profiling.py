"""Profiling of a run: a trace of some steps, a port for a profiler, and a memory profile when a device is full.

A trace is in WORKDIR/profile, for TensorBoard's profile plugin and for xprof (`xprof WORKDIR/profile`). A port takes a
trace at any time (`jax.collect_profile PORT 2000`). Where a device is out of memory, WORKDIR/memory.prof says what its
memory holds, for pprof.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax

_AFTER = 3  # steps of a life that are not traced: the first ones are slower


class Profile(NamedTuple):
  """What to profile.

  Attributes:
    steps: number of steps to trace; 0 for none.
    port: port of this host that a profiler may ask; None for none.
  """

  steps: int = 0
  port: int | None = None


class Tracer:
  """Traces the chosen steps of a process; `step` is called before each step."""

  def __init__(self, profile: Profile, workdir: str | os.PathLike):
    if profile.steps < 0:
      raise ValueError(f'--profile is {profile.steps}; it must be a number of steps, 1 or more')
    self._left, self._before = profile.steps, _AFTER
    self._folder = os.path.join(os.fspath(workdir), 'profile')
    self._running = False
    if profile.port is not None:
      jax.profiler.start_server(profile.port)

  def step(self) -> None:
    if not self._left and not self._running:
      return
    if self._before:
      self._before -= 1
      return
    if not self._running:
      jax.profiler.start_trace(self._folder)
      self._running = True
    elif not self._left:
      self.close()
      return
    self._left -= 1

  def close(self) -> None:
    """Ends a trace that is being taken."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      print(f'jaxgen: the trace of the steps is in {self._folder}', file=sys.stderr)


@contextlib.contextmanager
def memory_if_full(workdir: str | os.PathLike) -> Iterator[None]:
  """Leaves WORKDIR/memory.prof where the block ends for want of a device's memory."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' in str(error) and '://' not in os.fspath(workdir):
      path = os.path.join(os.fspath(workdir), f'memory{jax.process_index() or ""}.prof')
      with contextlib.suppress(Exception):  # the error below tells more than why this failed
        jax.profiler.save_device_memory_profile(path)
        print(f'jaxgen: a device is out of memory; what it holds is in {path}, for pprof', file=sys.stderr)
    raise
