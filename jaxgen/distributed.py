"""Many processes as one program: start-up, agreement, and being told to stop.

`start` joins the job that the environment describes and leaves a single process alone. In order:
JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; else whatever JAX detects itself (Cloud TPU pods,
SLURM, Kubernetes, Open MPI).
"""

import os
import signal
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


class Preempted(Exception):
  """The run was told to stop (SIGTERM) and has saved its state; start it again to go on."""

  exit_code = 75  # EX_TEMPFAIL: launchers start the run again


def start() -> None:
  """Joins the job this process is part of; call it before anything touches a device.

  Raises:
    ValueError: the environment names a coordinator but not this process.
  """
  if jax.distributed.is_initialized():
    return
  address = os.environ.get('JAX_COORDINATOR_ADDRESS')
  count, index = os.environ.get('JAX_NUM_PROCESSES'), os.environ.get('JAX_PROCESS_ID')
  if address and count and index:
    jax.distributed.initialize(address, num_processes=int(count), process_id=int(index))
    return
  try:
    jax.distributed.initialize()
  except ValueError as error:
    # JAX's word for "no cluster here": a single process.
    if 'coordinator_address should be defined' in str(error):
      return
    raise ValueError(
      f'cannot join the distributed job: {error} Set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and '
      f'JAX_PROCESS_ID in every process; got {address!r}, {count!r}, {index!r}'
    ) from error


def is_first() -> bool:
  """Whether this is the process that speaks and writes."""
  return jax.process_index() == 0


def agree(value: int) -> int:
  """The first process's value, on every process."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def stop_signal() -> Callable[[int], bool]:
  """Listens for SIGTERM; returns `stop(step)`, true once the run must save and end at this step.

  With several processes all of them answer alike at the same step, whichever was signalled.
  """
  if jax.distributed.is_initialized():
    return multihost_utils.reached_preemption_sync_point
  told: list[bool] = []
  if threading.current_thread() is not threading.main_thread():
    return lambda step: False  # only the main thread may listen
  signal.signal(signal.SIGTERM, lambda *_: told.append(True))
  return lambda step: bool(told)
