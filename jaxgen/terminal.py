"""Console output of a run: one live line in a terminal, plain lines with the time anywhere else."""

import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

_REDRAW_SECONDS = 0.1  # how often the live line is redrawn at most
_LINE_SECONDS = 60.0  # seconds between two lines of progress of long work, without a live line


class Console:
  """One line that is redrawn in a terminal, or plain lines anywhere else.

  Args:
    stream: the text stream to write to.
    call: makes a call soon, and in order: whoever reads the stream may be slow or gone.
  """

  def __init__(self, stream: Any, call: Callable[[Callable[[], None]], Any]):
    self._stream, self._call = stream, call
    self._live = stream.isatty()
    self._shown = ''
    self._values: dict[str, Any] = {}
    self._start: tuple[float, int] | None = None  # time and step of the first call, for the time left
    self._seconds_per_step: float | None = None
    self._drawn = 0.0

  def progress(self, step: int, total: int, values: Mapping[str, Any]) -> None:
    """Shows where the run is: each call in a terminal, elsewhere only those that bring values."""
    now = time.monotonic()
    self._start = self._start or (now, step)
    self._values.update(values)
    too_soon = step < total and now - self._drawn < _REDRAW_SECONDS
    if not values and (not self._live or too_soon):
      return
    self._drawn = now
    if values and step > self._start[1]:  # the device has caught up; elsewhere steps are only on their way to it
      self._seconds_per_step = (now - self._start[0]) / (step - self._start[1])
    left = self._values.get('seconds_left')
    if left is None and self._seconds_per_step is not None:
      left = self._seconds_per_step * (total - step)
    self._show(progress_text(step, total, {**self._values, 'seconds_left': left}))

  def working(self, text: str) -> None:
    """Shows the progress of long work: in the live line, or elsewhere in a line a minute at most."""
    now = time.monotonic()
    if now - self._drawn >= (_REDRAW_SECONDS if self._live else _LINE_SECONDS):
      self._drawn = now
      self._show(text)

  def text(self, text: str) -> None:
    """Prints lines, above the live line if there is one."""
    self._call(lambda: self._print_above(text) if self._live else self._print(text))

  def end(self) -> None:
    """Leaves the live line as it is."""
    self._call(self._end)

  def _show(self, line: str) -> None:
    self._call(lambda: self._redraw(line) if self._live else self._print(line))

  def _print(self, text: str) -> None:
    now = time.strftime('%Y-%m-%d %H:%M:%S')
    print(f'{now}  {text}', file=self._stream, flush=True)

  def _redraw(self, line: str) -> None:
    # The last column stays free: a terminal would wrap when it is filled.
    line = line[: shutil.get_terminal_size().columns - 1]
    self._stream.write('\r' + line + '\x1b[K')
    self._stream.flush()
    self._shown = line

  def _print_above(self, text: str) -> None:
    self._stream.write(('\r\x1b[K' if self._shown else '') + text + '\n' + self._shown)
    self._stream.flush()

  def _end(self) -> None:
    if self._shown:
      print(file=self._stream, flush=True)
    self._shown = ''


def progress_text(step: int, total: int, values: Mapping[str, Any]) -> str:
  """`step 1,200/20,000  6%  loss 0.213  1,204 images/s  input 0.4%  left 12:03`."""
  values = dict(values)
  left = values.pop('seconds_left', None)
  rate, wait = values.pop('images_per_second', None), values.pop('input_wait', None)
  parts = [f'step {step:,}/{total:,}', f'{100 * step // max(total, 1)}%']
  parts += [f'{name} {float(value):.4g}' for name, value in values.items()]
  if rate is not None:
    parts.append(f'{float(rate):,.0f} images/s' if rate >= 100 else f'{float(rate):.3g} images/s')
  if wait is not None:
    parts.append(f'input wait {100 * float(wait):.1f}%')
  if left is not None and step < total:
    parts.append(f'{duration(left)} left')
  return '  '.join(parts)


def duration(seconds: float) -> str:
  """`0:42`, `12:03`, `3:07:09` or `2d 03:07`."""
  minutes, second = divmod(round(float(seconds)), 60)
  hours, minute = divmod(minutes, 60)
  days, hour = divmod(hours, 24)
  if days:
    return f'{days}d {hour:02d}:{minute:02d}'
  return f'{hours}:{minute:02d}:{second:02d}' if hours else f'{minutes}:{second:02d}'
