"""The steps since the last line of metrics: their means, still on the device, and where the time went."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxgen.train_step import Mean
from jaxgen.watchdog import Waiting

_SLOW = 1.5  # times the median


class StepWindow:
  """The steps since the last log line: their metrics, still on the device, and where the time went."""

  def __init__(self, batch_size: int):
    self._batch_size = batch_size
    self.own_seconds = self.seconds = 0.0  # a step's own, and all, in the window that was read last
    self._slowest: str | None = None
    self._start()

  def _start(self) -> None:
    self._metrics: list[dict[str, Mean]] = []
    self._waited = self._paused = self._others = 0.0
    self._since = time.perf_counter()

  @property
  def is_empty(self) -> bool:
    return not self._metrics

  def next(self, batches: Waiting, meanwhile: Callable[[], None]) -> Any:
    """The next batch; calls `meanwhile` while it is not there.

    Its time counts as waiting for input where the device had run out of work by the end of it.
    """
    began = time.perf_counter()
    batch = batches.next(meanwhile)
    if not self._metrics or self._metrics[-1]['skipped'].total.is_ready():  # pyrefly: ignore[missing-attribute]
      self._waited += time.perf_counter() - began
    return batch

  def add(self, metrics: dict[str, Mean]) -> None:
    self._metrics.append(metrics)

  def waited_for_others(self, seconds: float) -> None:
    """Time in which other processes were slower than this one."""
    self._others += seconds

  @contextlib.contextmanager
  def pause(self):
    """Time in here is not training's."""
    began = time.perf_counter()
    yield
    self._paused += time.perf_counter() - began

  def read(self) -> dict[str, float]:
    """The means over the window, from the device; starts the next window."""
    from clu.metrics import Average

    fetched = jax.device_get(self._metrics)
    self.seconds = seconds = time.perf_counter() - self._since - self._paused
    values = {}
    for name in fetched[0]:
      mean = Average(
        total=np.sum([metrics[name].total for metrics in fetched]),
        count=np.sum([metrics[name].count for metrics in fetched]),
      )
      if mean.count > 0:
        values[name] = float(mean.compute())
    self.own_seconds = max(seconds - self._others, 0.0) / len(fetched)
    values['step_seconds'] = seconds / len(fetched)
    values |= memory()
    values['images_per_second'] = len(fetched) * self._batch_size / seconds
    values['input_wait'] = self._waited / seconds
    self._start()
    return values

  def newly_slow(self, shared: Mapping[str, float]) -> str | None:
    """A message about the slowest process, by its own seconds a step, when it is another one than before."""
    slowest = max(shared, key=lambda name: shared[name])
    median = statistics.median(shared.values())
    if shared[slowest] <= _SLOW * median or slowest == self._slowest:
      return None
    self._slowest = slowest
    return f'{slowest} is slow: {shared[slowest]:.3g} s a step of its own, where the median is {median:.3g} s'


def memory() -> dict[str, float]:
  """GiB in use: this process's resident memory, and the most that one of its devices has had in use."""
  values = {}
  with contextlib.suppress(OSError), open('/proc/self/statm') as file:
    values['host_memory_gib'] = int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**30
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [each['peak_bytes_in_use'] for each in stats if 'peak_bytes_in_use' in each]
  if peaks:
    values['device_memory_gib'] = max(peaks) / 2**30
  return values
