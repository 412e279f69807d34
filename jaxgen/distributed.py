"""Many processes as one program: start-up, agreement, stopping, and no waiting for dead processes.

`start` joins the job that the environment describes and leaves a single process alone. In order:
JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; else whatever JAX detects itself (Cloud TPU pods,
SLURM, Kubernetes, Open MPI).

A collective waits for every process, for ever. So that a process that is gone, late or broken cannot hang the rest:

  it dies      JAX ends the others, and names it, when its heartbeat has been missing for JAXGEN_HEARTBEAT_SECONDS (100)
  it fails     `fail` gives the others the reason, and all end within seconds
  it hangs     its watchdog fails it (watchdog.py), with where all are
  it is late   `ready` is called before whatever all must do together, and says who has not come in
               JAXGEN_READY_SECONDS (600), and where that process was last
  it is told   before the first step SIGTERM or Ctrl-C of one ends all within seconds, also while they compile; later
   to stop     they save and end together, at a step that all come to

A process waits JAXGEN_INITIALIZE_SECONDS (300) for the others when it starts. All but the first go through the
key-value store and the barriers of JAX's coordination service, which need no device.
"""

import contextlib
import fcntl
import itertools
import os
import pathlib
import secrets
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

from jaxgen.data.job import ALONE, Job
from jaxgen.home import remote
from jaxgen.signals import Signals

_LOOK_SECONDS = 2.0  # between two looks at whether another process has failed
_SEEN_SECONDS = 10.0
_MEETINGS = itertools.count()
_NOTICE = 'RECEIVED_PREEMPTION_NOTICE'  # JAX's key for a SIGTERM that any process has got; it gives it no public name


class Preempted(Exception):
  """The run had to stop, or hung where it could still save. It is saved; start it again to resume."""

  exit_code = 75  # EX_TEMPFAIL: launchers start the run again


class Interrupted(KeyboardInterrupt):
  """Ctrl-C stopped the run, which is saved."""


class Missing(RuntimeError):
  """Some processes did not reach a point where all must meet; the message names them."""


def start(signals: Signals | None = None) -> None:
  """Joins the job this process is part of; call it before anything touches a device.

  Args:
    signals: signal handlers of a program that may end before its first step when any process gets a signal to stop.

  Raises:
    ValueError: the environment names a coordinator but not this process, or a time that is not a number of seconds.
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
      initialization_timeout=_seconds('JAXGEN_INITIALIZE_SECONDS', 300),
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
    if signals is not None:
      signals.alone, signals.leave = False, _leave_together
    threading.Thread(target=_watch, args=(signals,), name='jaxgen-job', daemon=True).start()


def is_distributed() -> bool:
  """Whether this run has several processes, or one that JAX started as if it had."""
  return jax.distributed.is_initialized()


def is_first() -> bool:
  """Whether this is the process that prints and writes."""
  return jax.process_index() == 0


def agree(value: int) -> int:
  """The first process's value, on every process."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def ready(phase: str) -> float:
  """Waits until every process has reached `phase`, a name that all of them give, such as 'save at step 100'.

  It takes a message to the coordinator and back, and no device. Returns the seconds that it waited.

  Raises:
    Missing: some have not reached it within JAXGEN_READY_SECONDS.
  """
  if jax.process_count() == 1:
    return 0.0
  store, seconds, began = _store(), _seconds('JAXGEN_READY_SECONDS', 600), time.monotonic()
  store.key_value_set(f'jaxgen/at/{jax.process_index()}', phase, allow_overwrite=True)
  try:
    store.wait_at_barrier(f'jaxgen/{phase}', 1000 * seconds)
  except jax.errors.JaxRuntimeError as error:
    if 'Barrier timed out' not in str(error):
      raise
    places = _places()
    late = [i for i in range(jax.process_count()) if places.get(i) != phase]
    who = ', '.join(f'{_name(i)}, last at {places.get(i, "its start")!r}' for i in late) or 'one that came too late'
    raise Missing(
      f'{len(late)} of {jax.process_count()} processes did not come to {phase!r} within {seconds} s '
      f'(JAXGEN_READY_SECONDS): {who}; see their logs'
    ) from error
  return time.monotonic() - began


def job(folder: str | os.PathLike) -> Job:
  """All processes as workers on one dataset, if they see the same folder of prepared datasets; else each is alone.

  Args:
    folder: folder of prepared datasets on this machine, or the mirror of one in a bucket, which all processes see.
  """
  if jax.process_count() == 1:
    return ALONE
  folder = pathlib.Path(folder)
  if remote(folder) is None:
    probe = folder / f'.shared-{agree(secrets.randbits(31))}'
    if is_first():
      folder.mkdir(parents=True, exist_ok=True)
      probe.touch()
    ready(f'a look at {folder}')
    seen = np.asarray(multihost_utils.process_allgather(np.int32(_comes(probe))))
    if is_first():
      probe.unlink()
    if not seen.all():
      return ALONE
  return Job(jax.process_index(), jax.process_count(), _meet_patiently, _at)


def _comes(path: pathlib.Path) -> bool:
  """Whether a file exists, or appears within the time for which network file systems cache its absence."""
  end = time.monotonic() + _SEEN_SECONDS
  while not path.exists():
    if not path.parent.exists() or time.monotonic() > end:
      return False
    os.listdir(path.parent)
    time.sleep(0.2)
  return True


def _at(where: str) -> None:
  _store().key_value_set(f'jaxgen/at/{jax.process_index()}', where, allow_overwrite=True)


def _meet_patiently(phase: str) -> None:
  """As `ready`, for processes that work for hours: it waits as long as any of them reports progress.

  Raises:
    Missing: none has made progress for JAXGEN_STALL_SECONDS (1800; 0 for no limit).
  """
  store, seconds = _store(), float(os.environ.get('JAXGEN_STALL_SECONDS') or 1800)
  _at(phase)
  came = f'jaxgen/came/{next(_MEETINGS)} {phase}/'  # a name for each time
  store.key_value_set(f'{came}{jax.process_index()}', 'here')
  places, since = None, time.monotonic()
  while len(store.key_value_dir_get(came)) < jax.process_count():
    now = _places()
    if now != places:
      places, since = now, time.monotonic()
    if 0 < seconds < time.monotonic() - since:
      raise Missing(f'no process has made progress for {seconds:.0f} s (JAXGEN_STALL_SECONDS){where_all_are()}')
    time.sleep(0.2)


def where_all_are() -> str:
  """The last known phase of each process, for the message of one that makes no progress; '' for a single process."""
  if not is_distributed():
    return ''
  return '; last seen: ' + ', '.join(f'{_name(i)} at {place!r}' for i, place in sorted(_places().items()))


def fail(error: Exception, *, code: int = 1) -> None:
  """Ends this process and gives the others the reason, if there are others; a single process raises.

  A usual exit would wait for processes that wait for this one.

  Args:
    error: the error to report.
    code: exit code of all of them.
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
    _store().key_value_set('jaxgen/failed', f'{code} {why}')
  _end(why, code)


def agreed_stop(signals: Signals) -> Callable[[], bool]:
  """Returns `stop()`, true once the run must save and end here.

  With several processes all return the same answer at the same call, whichever got the signal; so all must call it
  """
  if not is_distributed():
    return lambda: signals.received is not None
  # JAX hears SIGTERM itself, and agrees on the largest number that any process has come to, and one more. Calls are
  # counted rather than steps, because an evaluation asks many times in one step.
  calls, sent = itertools.count(), []
  signals.alone = False

  def stop() -> bool:
    if signals.received == signal.SIGINT and not sent:
      sent.append(True)
      os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells all of
    return multihost_utils.reached_preemption_sync_point(next(calls))

  return stop


def share_seconds(seconds: float) -> dict[str, float]:
  """Publishes how long a step takes this process, without waiting; returns the last known times of all by name."""
  store = _store()
  store.key_value_set(f'jaxgen/seconds/{jax.process_index()}', f'{seconds:.6g}', allow_overwrite=True)
  if not is_first():
    return {}
  shared = store.key_value_dir_get('jaxgen/seconds/')
  return {_name(int(key.rpartition('/')[2])): float(value) for key, value in shared}


@contextlib.contextmanager
def alone_in(workdir: str | os.PathLike) -> Iterator[None]:
  """Locks a run's folder for this job until the block or the process ends; does nothing for a bucket.

  Raises:
    ValueError: another process holds the lock.
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


def _places() -> dict[int, str]:
  """The last phase that each process reached."""
  return {int(key.rpartition('/')[2]): place for key, place in _store().key_value_dir_get('jaxgen/at/')}


def _watch(signals: Signals | None) -> None:
  """A thread of every process: the main one may be in a compiler, or in a collective that will never end."""
  while True:
    time.sleep(_LOOK_SECONDS)
    if _store() is None:
      return  # this process has left the job
    if failed := _found('jaxgen/failed'):
      code, _, why = failed.partition(' ')
      _end(why, int(code))
    if signals is not None and not signals.stepped and _found(_NOTICE):
      _leave_together(Preempted.exit_code, 'a process was told to stop; there was nothing new to save')


def _found(key: str) -> str | None:
  try:
    return _store().key_value_try_get(key)
  except (jax.errors.JaxRuntimeError, AttributeError):  # there is no such key; or this process has left the job
    return None


def _leave_together(code: int, why: str) -> None:
  """Ends all processes, the others with 75."""
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
    _store().key_value_set('jaxgen/failed', f'{Preempted.exit_code} {_name(jax.process_index())}: {why}')
  _end(why, code)


def _end(why: str, code: int) -> None:
  print(f'jaxgen: {why}; ending this process', file=sys.stderr, flush=True)
  sys.stdout.flush()
  if is_first():
    time.sleep(2 * _LOOK_SECONDS)  # the store ends with this process: the others must have read it
  os._exit(code)


def _seconds(name: str, default: int) -> int:
  value = os.environ.get(name) or str(default)
  if not value.isdecimal() or int(value) < 1:
    raise ValueError(f'{name} is {value!r}; it must be a whole number of seconds, 1 or more')
  return int(value)
