"""What a run leaves behind and what a person sees of it while it runs.

  config.json       the resolved config, and the environment it ran in
  status.json       {"step": 100, "total": 20000, "time": seconds since 1970}, as of the last progress
  metrics.jsonl     one JSON object per line, {"step": 100, "loss": 0.31}; a value that is not finite is null
  protocols.json    how each metric of quality is measured, by the metric's name
  tensorboard/      the same scalars and images as event files
  samples/          NAME_STEP.png, grids of images
  NAME.txt          longer texts, e.g. the table of parameters

A run that resumes at step s goes on as if it had never died: what an earlier process wrote beyond s is
dropped first. One process writes; the others get `silent()`. The folder may be in a bucket, gs://BUCKET/RUN.
"""

import io
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxgen.typing import UInt8

_GAP = 2  # pixels between the images of a grid
_VIEWABLE = 64  # smaller images are enlarged by a whole factor, so that a grid can be looked at
_REDRAW_SECONDS = 0.1  # how often the live line is redrawn at most
_LINE_SECONDS = 60.0  # how often long work says how far it is where there is no live line
_SAMPLE = re.compile(r'.+_(\d{8})\.png$')


class Writer:
  """Writes a run's folder; text and progress go to a stream.

  Args:
    workdir: the run's folder, made if missing. None writes nothing at all.
    resume_step: the step the run goes on from; records of later steps are dropped. None is a new run, which
      drops all of them.
    stream: where text and progress go, in place of standard output.
  """

  def __init__(self, workdir: str | os.PathLike | None, *, resume_step: int | None = None, stream: Any = None):
    self._workdir = None if workdir is None else epath.Path(workdir)
    self._line = _ProgressLine(stream or sys.stdout)
    if self._workdir is None:
      return
    self._goes_on = resume_step is not None
    last = -1 if resume_step is None else resume_step
    (self._workdir / 'samples').mkdir(parents=True, exist_ok=True)
    _drop_records_beyond(self._workdir / 'metrics.jsonl', last)
    _drop_samples_beyond(self._workdir / 'samples', last)
    self._metrics = _Lines(self._workdir / 'metrics.jsonl')
    self._tensorboard = _tensorboard(self._workdir / 'tensorboard', last + 1)

  def config(self, config: Mapping[str, Any]) -> None:
    """Writes config.json, with the `environment` beside it; what JSON cannot hold is written as its repr.

    Where a run goes on with other values than it had, they are told.
    """
    if self._workdir is None:
      return
    path = self._workdir / 'config.json'
    text = json.dumps({**config, 'environment': environment()}, indent=2, default=repr)
    changes = _changes(path, json.loads(text)) if self._goes_on else []
    if changes:
      self.text(f'Going on with other values: {", ".join(changes)}')
    write_whole(path, text + '\n')

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends one record; values are numbers or arrays of one element."""
    if self._workdir is None:
      return
    numbers = {name: float(np.asarray(value).reshape(())) for name, value in values.items()}
    record = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    self._metrics.add(json.dumps({'step': int(step), **record}, allow_nan=False))
    if self._tensorboard is not None:
      for name, value in record.items():
        if value is not None:
          self._tensorboard.add_scalar(name, value, int(step))

  def protocol(self, metric: str, how: Mapping[str, Any]) -> None:
    """Keeps in protocols.json how a metric is measured: without that its numbers cannot be compared."""
    if self._workdir is None:
      return
    path = self._workdir / 'protocols.json'
    protocols = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    write_whole(path, json.dumps({**protocols, metric: dict(how)}, indent=2, default=repr) + '\n')

  def images(
    self, step: int, name: str, images: UInt8[np.ndarray, 'n h w c'], *, rows: Sequence[str] | None = None
  ) -> None:
    """Saves samples/NAME_STEP.png.

    Args:
      step: the step of the weights that made them.
      name: what they are, e.g. 'samples'.
      images: 1 or 3 channels.
      rows: a label for each row of the grid, which divide the images evenly; a near-square grid without.
    """
    if self._workdir is None:
      return
    picture = grid(images, rows=rows)
    path = self._workdir / 'samples' / f'{name}_{int(step):08d}.png'
    save_png(path, picture)
    if self._tensorboard is not None:
      self._tensorboard.add_image(name, picture, int(step), dataformats='HWC')

  def text(self, text: str, *, name: str | None = None) -> None:
    """Prints lines above the progress line; with a name, keeps them as NAME.txt in the run's folder."""
    if self._workdir is None:
      return
    self._line.above(text)
    if name is not None:
      write_whole(self._workdir / f'{name}.txt', text.rstrip('\n') + '\n')

  def progress(self, step: int, total: int, values: Mapping[str, Any] | None = None) -> None:
    """Shows where the run is.

    In a terminal one live line is redrawn, with the last known values. Elsewhere a line is printed for each
    call that brings values, so that a log stays readable.

    Args:
      step: steps done.
      total: steps of the whole run.
      values: numbers by name; `images_per_second`, `input_wait` (a fraction of the time) and `seconds_left`
        are shown in their units. Without `seconds_left` it is estimated from the calls so far.
    """
    if self._workdir is None:
      return
    self._line.update(int(step), int(total), values or {})
    if values:
      status = {'step': int(step), 'total': int(total), 'time': round(time.time())}
      write_whole(self._workdir / 'status.json', json.dumps(status) + '\n')

  def working(self, text: str) -> None:
    """Shows how far long work is that is no step: in the live line, or elsewhere in a line a minute at most."""
    if self._workdir is not None:
      self._line.working(text)

  def close(self) -> None:
    """Ends the progress line and closes the files; calling it again does nothing."""
    if self._workdir is None:
      return
    self._line.end()
    board, self._tensorboard = self._tensorboard, None
    if board is not None:
      _close_tensorboard(board)
    self._metrics.close()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      self.close()
    except OSError:  # of a full disk, say: what has failed before it tells more
      if kind is None:
        raise


def silent() -> Writer:
  """The writer of every process but the first: it writes and says nothing."""
  return Writer(None)


def environment() -> dict[str, Any]:
  """Versions and devices, for whoever reads the run's numbers later."""
  import jax

  from jaxgen import __version__

  return {
    'jaxgen': __version__,
    'jax': jax.__version__,
    'python': platform.python_version(),
    'platform': f'{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores',
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'processes': jax.process_count(),
  }


def grid(
  images: UInt8[np.ndarray, 'n h w c'],
  *,
  columns: int | None = None,
  scale: int | None = None,
  rows: Sequence[str] | None = None,
) -> UInt8[np.ndarray, 'H W 3']:
  """Lays images out in rows on white, two pixels apart.

  Args:
    images: 1 or 3 channels; the last row may be short.
    columns: images in a row; unless given, what makes the grid near square, or one row for each label.
    scale: whole factor of enlargement by nearest neighbour; unless given, small images are enlarged until
      they can be seen.
    rows: labels drawn left of the rows.
  """
  n, height, width, channels = images.shape
  if n == 0 or channels not in (1, 3):
    raise ValueError(f'a grid needs at least one image of 1 or 3 channels; got shape {images.shape}')
  if rows is not None and n % len(rows):
    raise ValueError(f'{n} images do not divide over {len(rows)} labelled rows')
  columns = columns or (n // len(rows) if rows else math.ceil(math.sqrt(n)))
  scale = scale or max(1, _VIEWABLE // max(height, width))
  images = np.repeat(images, 3, axis=3) if channels == 1 else images
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  height, width, lines = height * scale, width * scale, math.ceil(n / columns)
  picture = np.full((lines * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
  for i, image in enumerate(images):
    top, left = _GAP + i // columns * (height + _GAP), _GAP + i % columns * (width + _GAP)
    picture[top : top + height, left : left + width] = image
  return np.concatenate([_labels(rows, height, lines), picture], axis=1) if rows else picture


def save_png(path: str | os.PathLike, image: UInt8[np.ndarray, 'h w c']) -> None:
  """Writes a PNG of 1 or 3 channels, whole or not at all."""
  from PIL import Image

  image = image[..., 0] if image.shape[-1] == 1 else image
  data = io.BytesIO()
  Image.fromarray(image).save(data, format='PNG')
  write_whole(path, data.getvalue())


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The records of a metrics.jsonl; a last line that a kill cut in half is left out."""
  records = []
  for line in epath.Path(path).read_bytes().decode(errors='replace').splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(record, dict) and isinstance(record.get('step'), int):
      records.append(record)
  return records


def flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'model': {'width': 8}} as {'model.width': 8}."""
  fields: dict[str, Any] = {}
  for key, value in values.items():
    fields |= flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value}
  return fields


def _changes(path: epath.Path, record: Mapping[str, Any]) -> list[str]:
  """What differs between the config in a file and the one in a record."""
  try:
    kept = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, ValueError):
    return []
  before, now = flat(kept.get('config', {})), flat(record.get('config', {}))
  fields = sorted(before.keys() | now.keys())
  return [f'{key} was {before.get(key)!r}, is {now.get(key)!r}' for key in fields if before.get(key) != now.get(key)]


def _labels(rows: Sequence[str], height: int, lines: int) -> UInt8[np.ndarray, 'H W 3']:
  """The column of row labels, right-aligned, of the height of the grid."""
  from PIL import Image, ImageDraw, ImageFont

  font = ImageFont.load_default(size=14)
  width = 12 + max(int(font.getlength(row)) for row in rows)
  column = Image.new('RGB', (width, lines * (height + _GAP) + _GAP), 'white')
  draw = ImageDraw.Draw(column)
  for i, row in enumerate(rows):
    middle = _GAP + i * (height + _GAP) + height // 2
    draw.text((width - 6, middle), row, fill='black', font=font, anchor='rm')
  return np.array(column)


def write_whole(path: str | os.PathLike, data: bytes | str) -> None:
  """Writes a file so that a kill leaves either the old one or the new one; text is UTF-8."""
  path, data = epath.Path(path), data.encode() if isinstance(data, str) else data
  if _in_bucket(path):
    path.write_bytes(data)  # an object appears when all of it is there
    return
  partial = path.with_name(f'.{path.name}.tmp')
  partial.write_bytes(data)
  os.replace(partial, path)


def _in_bucket(path: epath.Path) -> bool:
  return '://' in os.fspath(path)


class _Lines:
  """A text file that grows by lines; each is there whole, and at once, for whoever reads it."""

  def __init__(self, path: epath.Path):
    self._path = path
    self._lines: list[str] | None = None
    if not _in_bucket(path):
      self._file = open(path, 'a', buffering=1, encoding='utf-8')  # noqa: SIM115
    else:  # objects cannot be appended to: all lines are written each time
      self._lines = path.read_text().splitlines() if path.exists() else []
      self.close()

  def add(self, line: str) -> None:
    if self._lines is None:
      self._file.write(line + '\n')
    else:
      self._lines.append(line)
      self.close()

  def close(self) -> None:
    if self._lines is None:
      self._file.close()
    else:
      write_whole(self._path, ''.join(line + '\n' for line in self._lines))


def _tensorboard(folder: epath.Path, purge_step: int) -> Any:
  """A tensorboardX writer, or None where tensorboardX is not installed."""
  try:
    from tensorboardX import SummaryWriter
  except ModuleNotFoundError:
    return None
  if purge_step == 0 and folder.exists():
    folder.rmtree()
  # The suffix keeps two processes apart that started in one second: file names carry only the time.
  return SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=f'.from_{purge_step}')


def _close_tensorboard(board: Any) -> None:
  """Where the disk is full its thread and its exit handler would fail too, and say so; metrics.jsonl has the same."""
  try:
    board.close()
  except OSError:
    events = board.file_writer.event_writer
    events._worker.stop()
    events._closed = True


def _drop_records_beyond(path: epath.Path, last: int) -> None:
  if path.exists():
    kept = [record for record in read_metrics(path) if record['step'] <= last]
    write_whole(path, ''.join(json.dumps(record) + '\n' for record in kept))


def _drop_samples_beyond(folder: epath.Path, last: int) -> None:
  for path in folder.glob('*.png'):
    match = _SAMPLE.match(path.name)
    if match and int(match.group(1)) > last:
      path.unlink()


class _ProgressLine:
  """One line that is redrawn in a terminal, or plain lines anywhere else."""

  def __init__(self, stream: Any):
    self._stream = stream
    self._live = stream.isatty()
    self._shown = ''
    self._values: dict[str, Any] = {}
    self._start: tuple[float, int] | None = None  # time and step of the first call, for the time left
    self._seconds_per_step: float | None = None
    self._drawn = 0.0

  def update(self, step: int, total: int, values: Mapping[str, Any]) -> None:
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
    now = time.monotonic()
    if now - self._drawn >= (_REDRAW_SECONDS if self._live else _LINE_SECONDS):
      self._drawn = now
      self._show(text)

  def _show(self, line: str) -> None:
    if not self._live:
      print(line, file=self._stream, flush=True)
      return
    # The last column stays free: a terminal would wrap when it is filled.
    line = line[: shutil.get_terminal_size().columns - 1]
    self._stream.write('\r' + line + '\x1b[K')
    self._stream.flush()
    self._shown = line

  def above(self, text: str) -> None:
    if self._shown:
      self._stream.write('\r\x1b[K')
    print(text, file=self._stream, flush=True)
    if self._shown:
      self._stream.write(self._shown)
      self._stream.flush()

  def end(self) -> None:
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
