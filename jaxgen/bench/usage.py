"""Processor time and page faults of a process: numbers that hold on a machine that is busy with other things."""

import os
import pathlib
import resource
from typing import NamedTuple

_TICKS = os.sysconf('SC_CLK_TCK')  # a second


class Usage(NamedTuple):
  """Sums since the process began.

  Attributes:
    seconds: processor time of all threads.
    faults: page faults.
  """

  seconds: float
  faults: int

  def since(self, before: 'Usage') -> 'Usage':
    """The difference from an earlier `Usage`."""
    return Usage(self.seconds - before.seconds, self.faults - before.faults)


def own() -> Usage:
  """The sums of this process."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  return Usage(used.ru_utime + used.ru_stime, used.ru_minflt + used.ru_majflt)


def of_process(pid: int) -> Usage:
  """The sums of another process of this machine, by Linux's /proc; zeros where there is no /proc."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return Usage(0.0, 0)
  fields = text.rpartition(')')[2].split()  # from the state on: the name before it may hold spaces
  return Usage((int(fields[11]) + int(fields[12])) / _TICKS, int(fields[7]) + int(fields[9]))
