"""Features of many images, kept on disk in shards, so that a killed evaluation continues.

A folder holds shard_000000.npz, shard_000001.npz, ..., each with the same arrays of the next images, and about.json,
which says what they depend on: features of another model, seed or network are never taken for these.
"""

import contextlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.files import read_json_object, replacing, write_whole

_COUNTS = 'counts.json'


class Shards:
  """Arrays by name, all with one row an image, that grow by shards.

  Args:
    folder: folder of the shards; None keeps them in memory only.
    about: all that the features depend on, as JSON.
    required: whether a folder that cannot be written, on a full disk for instance, is an error; else the features are
      kept in memory only from then on.
  """

  def __init__(self, folder: Path | None, *, about: Mapping[str, Any], required: bool = True):
    self._folder, self._required = folder, required
    self._parts: list[dict[str, Any]] = []
    self._pending: list[dict[str, Any]] = []
    about = json.loads(json.dumps(dict(about), sort_keys=True, default=str))
    with self._writing() as place:
      if place is None:
        return
      known = read_json_object(place / 'about.json')  # {} where there is none
      if known and known == about:
        self._parts = _read(place)
      else:
        place.mkdir(parents=True, exist_ok=True)
        self.clear()
        write_whole(place / 'about.json', json.dumps(about, indent=2))

  @contextlib.contextmanager
  def _writing(self) -> Iterator[Path | None]:
    """The folder, which is given up where it cannot be written and is not required."""
    try:
      yield self._folder
    except OSError:
      if self._required:
        raise
      self._folder = None

  def __len__(self) -> int:
    """Images whose features are there."""
    return sum(_rows(part) for part in (*self._parts, *self._pending))

  def add(self, arrays: Mapping[str, np.ndarray]) -> None:
    """Takes in the features of the next images; they are on disk after `flush`."""
    self._pending.append({name: np.asarray(values) for name, values in arrays.items()})

  def flush(self) -> None:
    """Writes the rows that were added since as one shard, complete or absent."""
    if not self._pending:
      return
    part: dict[str, Any] = {name: np.concatenate([each[name] for each in self._pending]) for name in self._pending[0]}
    self._pending = []
    with self._writing() as place:
      if place is not None:
        with replacing(place / f'shard_{len(self._parts):06d}.npz') as file:
          np.savez(file, **part)
    self._parts.append(part)

  def arrays(self) -> dict[str, np.ndarray]:
    """All rows, in the order they were added."""
    self.flush()
    if not self._parts:
      return {}
    return {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}

  def count(self, name: str) -> int:
    """The number that `set_count` has kept under this name; 0 before."""
    return int(self._counts().get(name, 0))

  def set_count(self, name: str, value: int) -> None:
    """Keeps a number beside the shards, such as how many images have been saved; it is forgotten with them."""
    if self._folder is not None:
      counts = self._counts() | {name: value}
      write_whole(self._folder / _COUNTS, json.dumps(counts))

  def _counts(self) -> dict[str, int]:
    path = None if self._folder is None else self._folder / _COUNTS
    return json.loads(path.read_text(encoding='utf-8')) if path is not None and path.is_file() else {}

  def clear(self) -> None:
    """Forgets everything, on disk too."""
    self._parts, self._pending = [], []
    if self._folder is not None:
      (self._folder / _COUNTS).unlink(missing_ok=True)
      for path in self._folder.glob('shard_*.npz'):
        path.unlink()

  def remove(self) -> None:
    """Deletes the folder."""
    if self._folder is not None:
      shutil.rmtree(self._folder, ignore_errors=True)


def _read(folder: Path) -> list[dict[str, np.ndarray]]:
  """The shards in order, up to the first that is missing or damaged."""
  parts = []
  while (path := folder / f'shard_{len(parts):06d}.npz').is_file():
    try:
      with np.load(path, allow_pickle=False) as file:
        parts.append(dict(file))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
      break
  return parts


def _rows(part: Mapping[str, np.ndarray]) -> int:
  return len(next(iter(part.values())))
