"""Writes a run's folder, and shows its progress.

  config.json       the resolved config, and the environment it ran in
  status.json       {"step": 100, "total": 20000, "time": seconds since 1970}, as of the last progress
  metrics.jsonl     one JSON object per line, {"step": 100, "loss": 0.31} (metrics_file.py)
  protocols.json    how each metric of quality is measured, by the metric's name
  tensorboard/      the same scalars and images as event files
  samples/          NAME_STEP.png, grids of images
  NAME.txt          longer texts, e.g. the table of parameters

A run that resumes at step s continues as if it had never died: what an earlier process wrote beyond s is
dropped first. One process writes; the others get `silent()`. The folder may be in a bucket, gs://BUCKET/RUN.

Training relies on metrics.jsonl alone, which is written at once and whose errors are raised. All the rest observes
(observers.py): a full disk, a hung file system or a closed terminal costs a warning and a count, `failures`.
"""

import functools
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxgen import files
from jaxgen.destination import Destination
from jaxgen.event_files import EventFiles
from jaxgen.image_grid import grid, save_png
from jaxgen.metrics_file import MetricsFile
from jaxgen.observers import Observers
from jaxgen.terminal import Console
from jaxgen.typing import UInt8

_CLOSE_SECONDS = 10.0  # for what still waits to be written at the end
_SAMPLE = re.compile(r'.+_(\d{8})\.png$')


class Writer:
  """Writes a run's folder; text and progress go to a stream.

  Args:
    workdir: the run's folder, made if missing. None writes nothing at all.
    resume_step: the step the run resumes from; records of later steps are dropped. None is a new run, which
      drops all of them.
    stream: stream of text and progress, in place of standard output.
    others: other places that metrics and pictures go to.

  Raises:
    OSError: metrics.jsonl cannot be written; so does `scalars`.
  """

  def __init__(
    self,
    workdir: str | os.PathLike | None,
    *,
    resume_step: int | None = None,
    stream: Any = None,
    others: Sequence[Destination] = (),
  ):
    self._workdir = folder = None if workdir is None else epath.Path(workdir)
    if folder is None:
      return
    self._screen = Observers(lambda text: None)
    self._console = Console(stream or sys.stdout, lambda act: self._screen.call('the console', act))
    self._observers = Observers(self.text)
    self._others = tuple(others)
    self._resumes = resume_step is not None
    last = -1 if resume_step is None else resume_step
    folder.mkdir(parents=True, exist_ok=True)
    self._metrics = MetricsFile(folder / 'metrics.jsonl', last_step=last, observers=self._observers, warn=self.text)
    self._events = EventFiles(folder / 'tensorboard', purge_step=last + 1)
    self._observers.call('tensorboard', self._events.start)
    self._observers.call('samples', lambda: _start_samples(folder, last), wait=True)

  @property
  def failures(self) -> int:
    """Writes that only observe and that failed, were late or were dropped, so far."""
    return 0 if self._workdir is None else self._observers.failures + self._screen.failures

  def observe(self, name: str, act: Callable[[], Any], *, wait: bool = False, once: bool = False) -> None:
    """Calls `act` beside the run: see `Observers.call`."""
    if self._workdir is not None:
      self._observers.call(name, act, wait=wait, once=once)

  def config(self, config: Mapping[str, Any]) -> None:
    """Writes config.json, with the `environment` beside it; what JSON cannot hold is written as its repr.

    Where a run resumes with other values than it had, they are printed.
    """
    if self._workdir is None:
      return
    text = json.dumps({**config, 'environment': environment()}, indent=2, default=repr)
    self.observe('config.json', lambda: self._write_config(text), wait=True)
    for other in self._others:
      self.observe(other.name, functools.partial(other.start, os.fspath(self._workdir), json.loads(text)))

  def _write_config(self, text: str) -> None:
    assert self._workdir is not None
    path = self._workdir / 'config.json'
    if self._resumes and (changes := _changes(self._kept(path), json.loads(text))):
      self.text(f'Going on with other values: {", ".join(changes)}')
    files.write_whole(path, text + '\n')

  def _kept(self, path: epath.Path) -> dict[str, Any]:
    """What a JSON file holds; a damaged one is kept under another name, with a warning."""
    value = files.read_json_object(path)
    if value is None:
      aside = files.set_aside(path)
      self.text(f'{path.name} is damaged: it is kept as {aside.name if aside else path.name}, and written anew')
    return value or {}

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends one record; values are numbers or arrays of one element."""
    if self._workdir is None:
      return
    step, numbers = int(step), {name: float(np.asarray(value).reshape(())) for name, value in values.items()}
    self._metrics.add(step, numbers)
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    self.observe('tensorboard', lambda: self._events.scalars(step, finite))
    for other in self._others:
      self.observe(other.name, functools.partial(other.scalars, step, numbers))

  def on_record(self, step: int) -> set[str]:
    """Names of the metrics that an earlier process recorded at a step."""
    return set() if self._workdir is None else self._metrics.on_record(step)

  def sync(self) -> None:
    """Returns when the records so far are stored safely: call it before a save that a run may resume from."""
    if self._workdir is not None:
      self._metrics.sync()

  def protocol(self, metric: str, how: Mapping[str, Any]) -> None:
    """Keeps in protocols.json how a metric is measured: without that its numbers cannot be compared."""
    if self._workdir is None:
      return
    path, how = self._workdir / 'protocols.json', dict(how)

    def write() -> None:
      files.write_whole(path, json.dumps({**self._kept(path), metric: how}, indent=2, default=repr) + '\n')

    self.observe('protocols.json', write, wait=True)

  def images(
    self, step: int, name: str, images: UInt8[np.ndarray, 'n h w c'], *, rows: Sequence[str] | None = None
  ) -> None:
    """Saves samples/NAME_STEP.png.

    Args:
      step: the step of the weights that made them.
      name: their name, such as 'samples'.
      images: 1 or 3 channels.
      rows: a label for each row of the grid, which divide the images evenly; a near-square grid without.
    """
    if self._workdir is None:
      return
    picture, step = grid(images, rows=rows), int(step)
    path = self._workdir / 'samples' / f'{name}_{step:08d}.png'
    self.observe('samples', lambda: save_png(path, picture), wait=True)  # before a record says that it was made
    self.observe('tensorboard', lambda: self._events.image(step, name, picture))
    for other in self._others:
      self.observe(other.name, functools.partial(other.image, step, name, picture))

  def text(self, text: str, *, name: str | None = None, shown: bool = True) -> None:
    """Prints lines above the progress line, if they are to be shown; with a name, keeps them as NAME.txt."""
    if self._workdir is None:
      return
    if shown:
      self._console.text(text)
    if name is not None:
      path = self._workdir / f'{name}.txt'
      self.observe(path.name, lambda: files.write_whole(path, text.rstrip('\n') + '\n'))

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
    self._console.progress(int(step), int(total), values or {})
    if values:
      path, status = self._workdir / 'status.json', {'step': int(step), 'total': int(total), 'time': round(time.time())}
      self.observe('status.json', lambda: files.write_whole(path, json.dumps(status) + '\n'))

  def working(self, text: str) -> None:
    """Shows the progress of long work other than steps: in the live line, or elsewhere in a line a minute at most."""
    if self._workdir is not None:
      self._console.working(text)

  def flush(self) -> None:
    """Returns when what was written so far is there to be seen, or has taken too long."""
    if self._workdir is not None:
      self._observers.flush()
      self._screen.flush()

  def close(self) -> None:
    """Ends the progress line and closes the files; calling it again does nothing."""
    if self._workdir is None:
      return
    self._metrics.close()
    self.observe('tensorboard', self._events.close)
    for other in self._others:
      self.observe(other.name, other.close)
    self._observers.close(_CLOSE_SECONDS)
    if self._observers.failures:
      self.text(f'{self._observers.failures} writes that only observe failed, were late or were dropped')
    self._console.end()
    self._screen.close(2.0)
    self._workdir = None

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      self.close()
    except OSError:  # a full disk, say: an earlier failure says more
      if kind is None:
        raise


def silent() -> Writer:
  """The writer of every process but the first: it writes and says nothing."""
  return Writer(None)


def environment() -> dict[str, Any]:
  """Versions, devices, command and commit, for whoever reads the run's numbers later."""
  import jax

  from jaxgen import __version__

  return {
    'jaxgen': __version__,
    'commit': _commit(),
    'jax': jax.__version__,
    'python': platform.python_version(),
    'platform': f'{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores',
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'processes': jax.process_count(),
    'command': shlex.join(sys.argv),
  }


def written_by(workdir: str | os.PathLike) -> str:
  """The version of jaxgen that wrote a run's folder, as the end of an error; '' where it is this one or not known."""
  kept = (files.read_json_object(epath.Path(workdir) / 'config.json') or {}).get('environment')
  if not isinstance(kept, Mapping) or 'jaxgen' not in kept:
    return ''
  now = environment()
  if all(kept.get(name) == now[name] for name in ('jaxgen', 'commit')):
    return ''
  wrote, here = (f'{it["jaxgen"]}' + (f' (commit {it["commit"]})' if it.get('commit') else '') for it in (kept, now))
  return f'; jaxgen {wrote} wrote {workdir}, and this is jaxgen {here}'


def _commit() -> str | None:
  """The commit that jaxgen runs from, with a + where files were changed; None outside a checkout."""
  here = os.path.dirname(os.path.abspath(__file__))
  command = ['git', '-C', here, 'describe', '--always', '--dirty=+', '--exclude=*', '--abbrev=12']
  try:
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None


def flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'model': {'width': 8}} as {'model.width': 8}."""
  fields: dict[str, Any] = {}
  for key, value in values.items():
    fields |= flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value}
  return fields


def _changes(kept: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
  """What differs between the config on record and the one of now; nothing where none is on record."""
  if not isinstance(kept.get('config'), dict):
    return []
  before, now = flat(kept['config']), flat(record.get('config', {}))
  fields = sorted(before.keys() | now.keys())
  return [f'{key} was {before.get(key)!r}, is {now.get(key)!r}' for key in fields if before.get(key) != now.get(key)]


def _start_samples(workdir: epath.Path, last: int) -> None:
  """Makes the folder of samples and drops those of later steps, and what was left half written."""
  folder = workdir / 'samples'
  folder.mkdir(parents=True, exist_ok=True)
  for path in folder.glob('*.png'):
    match = _SAMPLE.match(path.name)
    if match and int(match.group(1)) > last:
      path.unlink()
  if not files.in_bucket(workdir):
    files.remove_left_over(workdir)
    files.remove_left_over(folder, seconds=0)
