"""Atomic replacement of files, and tolerant reading of JSON files.

A replaced file is written beside its place under a name that nobody else uses, brought to the disk, and renamed: a
reader, a second writer and a kill at any moment see the old file or the new one. In a bucket (gs://BUCKET/NAME) an
object appears when all of it is there, so it is written in place.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import time
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

_TEMPORARY = re.compile(r'\..+\.[0-9a-f]{8}\.tmp')
_LEFT_SECONDS = 600.0  # a temporary file of this age was left by a process that died


def in_bucket(path: str | os.PathLike) -> bool:
  return '://' in os.fspath(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
  """A binary file of this machine that takes the place of `path` when the block ends, and not at all if it raises."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
  try:
    with open(temporary, 'xb') as file:
      yield file
    replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise


def replace(temporary: str | os.PathLike, path: str | os.PathLike) -> None:
  """Puts a file in the place of another on the same disk, with all that is in it."""
  _sync(temporary)
  os.replace(temporary, path)
  with contextlib.suppress(OSError):  # some file systems cannot; the file is whole all the same
    _sync(pathlib.Path(path).parent)


def write_whole(path: str | os.PathLike, data: bytes | str) -> None:
  """Replaces a file, here or in a bucket; text is UTF-8."""
  data = data.encode() if isinstance(data, str) else data
  if in_bucket(path):
    epath.Path(path).write_bytes(data)
    return
  with replacing(path) as file:
    file.write(data)


def remove_left_over(folder: str | os.PathLike, *, seconds: float = _LEFT_SECONDS) -> None:
  """Deletes the temporary files of `replacing` that processes which died have left in a folder of this machine.

  Args:
    folder: the folder.
    seconds: age from which a file is taken for left over; 0 in a folder that nobody else writes in.
  """
  for entry in os.scandir(folder):
    with contextlib.suppress(OSError):  # its writer may rename it at any moment
      if _TEMPORARY.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > seconds:
        os.unlink(entry.path)


def read_json_object(path: str | os.PathLike) -> dict[str, Any] | None:
  """A JSON file's object; {} where there is no such file, None where it is damaged or cannot be read."""
  try:
    value = json.loads(epath.Path(path).read_bytes())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


def set_aside(path: str | os.PathLike) -> epath.Path | None:
  """Renames a damaged file or folder to a free name beside it; None where there is none, or it cannot be renamed."""
  path = epath.Path(path)
  aside = path.with_name(f'{path.name}.damaged.{secrets.token_hex(4)}')
  try:
    return epath.Path(path.rename(aside))
  except OSError:
    return None


def _sync(path: str | os.PathLike) -> None:
  """Brings a file or a folder's list of names to the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
