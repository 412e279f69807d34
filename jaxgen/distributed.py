"""Many processes as one program: start-up, agreement, being told to stop, and not waiting for the dead.

`start` joins the job that the environment describes and leaves a single process alone. In order:
JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; else whatever JAX detects itself (Cloud TPU pods,
SLURM, Kubernetes, Open MPI).

A collective waits for every process, for ever. So that a process that is gone, late or broken cannot hang the rest:

  it dies      JAX ends the others, and names it, when its heartbeat has been missing for JAXGEN_HEARTBEAT_SECONDS (100)
  it fails     `fail` tells the others why, and all end within seconds
  it is late   `ready` is called before whatever all must do together, and says who has not come in
               JAXGEN_READY_SECONDS (600), and where that process was last

The last two go through the key-value store and the barriers of JAX's coordination service, which need no device.
"""

import contextlib
import fcntl
import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_LOOK_SECONDS = 2.0  # between two looks at whether another process has failed


class Preempted(Exception):
  """The run was told to stop (SIGTERM) and has saved its state; start it again to go on."""

  exit_code = 75  # EX_TEMPFAIL: launchers start the run again


class Missing(RuntimeError):
  """Some processes did not come to where all of them must meet; the message names them."""


def start() -> None:
  """Joins the job this process is part of; call it before anything touches a device.

  Raises:
    ValueError: the environment names a coordinator but not this process, or a time that is no number of seconds.
  """
  if jax.distributed.is_initialized():
    return
  address = os.environ.get('JAX_COORDINATOR_ADDRESS')
  count, index = os.environ.get('JAX_NUM_PROCESSES'), os.environ.get('JAX_PROCESS_ID')
  job: dict[str, Any] = {}
  if address and count and index:
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
      raise ValueError(
        f'JAX_PROCESS_ID is {index!r} and JAX_NUM_PROCESSES {count!r}; they must be whole numbers, the first below the '
        'second'
      )
    job = {'coordinator_address': address, 'num_processes': int(count), 'process_id': int(index)}
  heartbeat = _seconds('JAXGEN_HEARTBEAT_SECONDS', 100)
  try:
    jax.distributed.initialize(
      **job,
      heartbeat_timeout_seconds=heartbeat,
      shutdown_timeout_seconds=heartbeat,
    )
  except ValueError as error:
    # JAX's word for "no cluster here": a single process.
    if 'coordinator_address should be defined' in str(error):
      return
    raise ValueError(
      f'cannot join the distributed job: {error} Set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and '
      f'JAX_PROCESS_ID in every process; got {address!r}, {count!r}, {index!r}'
    ) from error
  if jax.process_count() > 1:
    _store().key_value_set(f'jaxgen/host/{jax.process_index()}', socket.gethostname())
    threading.Thread(target=_end_when_another_fails, name='jaxgen-failures', daemon=True).start()


def is_first() -> bool:
  """Whether this is the process that speaks and writes."""
  return jax.process_index() == 0


def agree(value: int) -> int:
  """The first process's value, on every process."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def ready(phase: str) -> None:
  """Waits until every process has come to `phase`, a name that all of them give, such as 'save at step 100'.

  It takes a message to the coordinator and back, and no device.

  Raises:
    Missing: some have not come in JAXGEN_READY_SECONDS.
  """
  if jax.process_count() == 1:
    return
  store, seconds = _store(), _seconds('JAXGEN_READY_SECONDS', 600)
  store.key_value_set(f'jaxgen/at/{jax.process_index()}', phase, allow_overwrite=True)
  try:
    store.wait_at_barrier(f'jaxgen/{phase}', 1000 * seconds)
  except jax.errors.JaxRuntimeError as error:
    if 'Barrier timed out' not in str(error):
      raise
    places = {int(key.rpartition('/')[2]): place for key, place in store.key_value_dir_get('jaxgen/at/')}
    late = [i for i in range(jax.process_count()) if places.get(i) != phase]
    who = ', '.join(f'{_name(i)}, last at {places.get(i, "its start")!r}' for i in late) or 'one that came too late'
    raise Missing(
      f'{len(late)} of {jax.process_count()} processes did not come to {phase!r} within {seconds} s '
      f'(JAXGEN_READY_SECONDS): {who}; see their logs'
    ) from error


def fail(error: Exception) -> None:
  """Ends this process and tells the others why, where there are others; a single process goes on to raise.

  A usual exit would wait for processes that wait for this one.
  """
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return
  traceback.print_exception(error)
  if isinstance(error, jax.errors.JaxRuntimeError):
    # A collective fails at once where another process has died. JAX knows which when its heartbeat has run out, and
    # then ends this process with that process's name; what follows is for other errors.
    heartbeat = _seconds('JAXGEN_HEARTBEAT_SECONDS', 100)
    print(f'jaxgen: waiting up to {heartbeat} s for JAX to say whether another process has died', file=sys.stderr)
    time.sleep(heartbeat + _LOOK_SECONDS)
  why = f'{_name(jax.process_index())} failed: {" ".join(str(error).split()) or type(error).__name__}'
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first, or the coordinator is gone
    _store().key_value_set('jaxgen/failed', why)
  _end(why)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Listens for SIGTERM within it; gives `stop(step)`, true once the run must save and end at this step.

  With several processes all of them answer alike at the same call, whichever was signalled.
  """
  if jax.distributed.is_initialized():
    # JAX agrees on the largest number that any process has come to, and one more. Calls are counted rather than
    # steps, because an evaluation asks many times in one step.
    calls = itertools.count()
    yield lambda step: multihost_utils.reached_preemption_sync_point(next(calls))
    return
  told: list[bool] = []
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False  # only the main thread may listen
    return
  before = signal.signal(signal.SIGTERM, lambda *_: told.append(True))
  try:
    yield lambda step: bool(told)
  finally:
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: it was not set from Python


@contextlib.contextmanager
def alone_in(workdir: str | os.PathLike) -> Iterator[None]:
  """Keeps a run's folder for this job until the end, or its death; of a bucket it cannot, and does nothing.

  Raises:
    ValueError: another process has it.
  """
  if not is_first() or '://' in os.fspath(workdir):
    yield
    return
  os.makedirs(workdir, exist_ok=True)
  with open(os.path.join(workdir, '.lock'), 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f'another process trains in {workdir}; wait until it has ended, or give this one another --workdir'
      ) from None
    except OSError:  # a file system without locks
      pass
    yield


def _store() -> Any:
  """The client of JAX's coordination service. JAX gives it no public name; Orbax takes it from here too."""
  from jax._src.distributed import global_state

  return global_state.client


def _name(index: int) -> str:
  """'process 1 (host-b)'."""
  try:
    return f'process {index} ({_store().key_value_try_get(f"jaxgen/host/{index}")})'
  except jax.errors.JaxRuntimeError:
    return f'process {index}'


def _end_when_another_fails() -> None:
  """A thread of every process: the main one may be in a collective that will never end."""
  while True:
    time.sleep(_LOOK_SECONDS)
    store = _store()
    if store is None:
      return  # this process has left the job
    try:
      why = store.key_value_try_get('jaxgen/failed')
    except jax.errors.JaxRuntimeError:
      continue  # none has failed
    _end(why)


def _end(why: str) -> None:
  print(f'jaxgen: {why}; ending this process', file=sys.stderr, flush=True)
  sys.stdout.flush()
  if is_first():
    time.sleep(2 * _LOOK_SECONDS)  # the store ends with this process: the others must have read it
  os._exit(1)


def _seconds(name: str, default: int) -> int:
  value = os.environ.get(name) or str(default)
  if not value.isdecimal() or int(value) < 1:
    raise ValueError(f'{name} is {value!r}; it must be a whole number of seconds, 1 or more')
  return int(value)
