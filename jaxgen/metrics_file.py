"""metrics.jsonl: one JSON object a line, {"step": 100, "loss": 0.31}; a value that is not finite is null.

On a disk the file grows by lines. Objects in a bucket cannot be appended to, so there the file grows by parts:

  metrics.jsonl              the lines of earlier processes
  metrics.000000120.jsonl    lines 120 and later; the newest part is written again, until it is long enough

Parts are uploaded at intervals by an observer (observers.py), with retries, and merged at the end. A part whose first
line is among those of metrics.jsonl was merged, by a process that died before it had deleted the part.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from jaxgen import files
from jaxgen.observers import Observers

_UPLOAD_SECONDS = 30.0  # between two uploads, at least; a checkpoint is preceded by one
_PART_BYTES = 1 << 18  # size of a part that is not written again
_RETRIES = (1.0, 2.0, 4.0, 8.0)  # seconds before each new try of an upload
_PART = re.compile(r'metrics\.(\d{9,})\.jsonl')

Record = dict[str, Any]


def read_metrics(path: str | os.PathLike) -> list[Record]:
  """The records of a metrics.jsonl and its parts; lines that are no records, and values that are no numbers, are left
  out.

  Raises:
    OSError: the file cannot be read.
  """
  return [record for line in _lines(epath.Path(path)) if (record := _record(line)) is not None]


class MetricsFile:
  """The metrics of a run, for the one process that writes them.

  Args:
    path: the file's path, which ends in metrics.jsonl.
    last_step: records of later steps are dropped.
    observers: upload the parts of a bucket's file.
    warn: called with damage that was found.
  """

  def __init__(
    self, path: epath.Path, *, last_step: int, observers: Observers, warn: Callable[[str], None] = lambda text: None
  ):
    self._path, self._observers = path, observers
    self._kept = [record for record in _repaired(path, warn) if record['step'] <= last_step]
    files.write_whole(path, ''.join(_line(record) for record in self._kept))
    self._bucket = files.in_bucket(path)
    if self._bucket:
      self._lines = [_line(record) for record in self._kept]
      self._begin = self._uploaded = len(self._lines)  # first line of the newest part; lines that are in the bucket
      self._last_upload = time.monotonic()
      _delete_parts(path)
    else:
      self._file = open(path, 'a', buffering=1, encoding='utf-8')  # noqa: SIM115

  def on_record(self, step: int) -> set[str]:
    """Names that have a value at a step, as the file was when it was opened."""
    return {name for record in self._kept if record['step'] == step for name in record}

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one record; on a disk it is in the file when this returns."""
    line = _line({'step': step} | {name: value if math.isfinite(value) else None for name, value in values.items()})
    if not self._bucket:
      self._file.write(line)
      return
    self._lines.append(line)
    if time.monotonic() - self._last_upload >= _UPLOAD_SECONDS:
      self._last_upload = time.monotonic()
      self._observers.call('the upload of metrics', self._upload)

  def sync(self) -> None:
    """Returns when all records are safe in the bucket, or warns when that takes too long."""
    if self._bucket:
      self._last_upload = time.monotonic()
      self._observers.call('the upload of metrics', self._upload, wait=True)
    else:
      self._file.flush()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    if self._bucket:
      self._observers.call('the upload of metrics', self._merge, wait=True)
    else:
      self._file.close()

  def _upload(self) -> None:
    """Writes the newest part with all lines so far."""
    end = len(self._lines)
    if end == self._uploaded:
      return
    part = ''.join(self._lines[self._begin : end])
    _retried(lambda: files.write_whole(self._path.with_name(f'metrics.{self._begin:09d}.jsonl'), part))
    self._uploaded = end
    if len(part) >= _PART_BYTES:
      self._begin = end

  def _merge(self) -> None:
    text = ''.join(self._lines)
    _retried(lambda: files.write_whole(self._path, text))
    self._begin = self._uploaded = len(self._lines)
    _delete_parts(self._path)


def _line(record: Mapping[str, Any]) -> str:
  return json.dumps(record, allow_nan=False) + '\n'


def _record(line: str) -> Record | None:
  """A line's record with what may be in one; None for a line that is none."""
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    return None
  if not isinstance(record, dict) or type(record.get('step')) is not int or record['step'] < 0:
    return None
  return {name: _finite(value) for name, value in record.items() if value is None or type(value) in (int, float)}


def _finite(value: float | None) -> float | None:
  return value if value is not None and abs(value) <= sys.float_info.max else None


def _lines(path: epath.Path) -> list[str]:
  """The lines of the file and of its parts, whole or not."""
  lines = _text(path).split('\n')
  lines.pop(-1) if not lines[-1] else None
  for begin, part in _parts(path):
    if begin >= len(lines):
      lines += _text(part).splitlines()
  return lines


def _text(path: epath.Path) -> str:
  return path.read_bytes().decode(errors='replace')


def _parts(path: epath.Path) -> list[tuple[int, epath.Path]]:
  """The parts beside a file by the number of their first line."""
  found = ((_PART.fullmatch(part.name), part) for part in path.parent.glob('metrics.*.jsonl'))
  return sorted((int(match[1]), part) for match, part in found if match)


def _delete_parts(path: epath.Path) -> None:
  for _, part in _parts(path):
    part.unlink(missing_ok=True)


def _repaired(path: epath.Path, warn: Callable[[str], None]) -> list[Record]:
  """The records of a file that may be missing or damaged; a damaged one is kept beside it."""
  try:
    lines = _lines(path)
  except FileNotFoundError:
    return []
  except OSError as error:  # a folder, say, or a file that may not be read
    aside = files.set_aside(path)
    if aside is None:
      raise
    warn(f'{path} cannot be read ({error.strerror or error}): it is kept as {aside.name}, and the metrics begin anew')
    return []
  records = [_record(line) for line in lines]
  if None in records[:-1]:  # the last line may be one that a kill cut in half
    aside = path.with_name(f'{path.name}.damaged.{time.time_ns():x}')
    files.write_whole(aside, path.read_bytes())
    lost = records.count(None)
    warn(f'{path.name} is damaged: {lost} of its {len(records)} lines are left out; as it was it is {aside.name}')
  return [record for record in records if record is not None]


def _retried(act: Callable[[], Any]) -> None:
  for seconds in _RETRIES:
    try:
      act()
      return
    except Exception:  # each kind of bucket has errors of its own
      time.sleep(seconds)
  act()
