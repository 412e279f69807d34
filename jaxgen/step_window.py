"""The steps since the last line of metrics: their means, still on the device, and where the time went."""

import contextlib
import time
from typing import Any

import jax
import numpy as np

from jaxgen.train_step import Mean


class StepWindow:
  """The steps since the last log line: their metrics, still on the device, and where the time went."""

  def __init__(self, batch_size: int):
    self._batch_size = batch_size
    self._start()

  def _start(self) -> None:
    self._metrics: list[dict[str, Mean]] = []
    self._waited = self._paused = 0.0
    self._since = time.perf_counter()

  def next(self, batches) -> Any:
    """The next batch. Its time counts as waiting for input where the device had run out of work by the end of it."""
    began = time.perf_counter()
    batch = next(batches)
    if not self._metrics or self._metrics[-1]['skipped'].total.is_ready():  # pyrefly: ignore[missing-attribute]
      self._waited += time.perf_counter() - began
    return batch

  def add(self, metrics: dict[str, Mean]) -> None:
    self._metrics.append(metrics)

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
    seconds = time.perf_counter() - self._since - self._paused
    values = {}
    for name in fetched[0]:
      mean = Average(
        total=np.sum([metrics[name].total for metrics in fetched]),
        count=np.sum([metrics[name].count for metrics in fetched]),
      )
      if mean.count > 0:
        values[name] = float(mean.compute())
    values['images_per_second'] = len(fetched) * self._batch_size / seconds
    values['input_wait'] = self._waited / seconds
    self._start()
    return values
