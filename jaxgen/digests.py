"""Digests of the files of a folder, and which read errors are transient.

A file's digest is the SHA-256 of the sums of its blocks of 512 little-endian 64-bit words, and of the bytes after the
last whole block. The sums are ten times as fast as SHA-256 of all bytes. A changed bit or a torn, cut or foreign block
changes them; this guards against accidents, not against somebody.
"""

import errno
import functools
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar('T')

NAME = 'digests.txt'
_THREADS = 4
_BLOCK = 4096  # bytes
_CHUNK = 1 << 20  # bytes that a thread holds: they stay in its cache, which halves the time
WAITS = (0.2, 1.0, 5.0)  # seconds between tries
# Conditions of the machine or of the network, and not of a file.
_PASSING = (
  'EIO', 'EMFILE', 'ENFILE', 'EACCES', 'EPERM', 'ESTALE', 'ETIMEDOUT', 'EAGAIN', 'EINTR', 'EBUSY', 'ENOMEM', 'ENODEV',
  'ENOTCONN', 'ECONNRESET', 'ECONNREFUSED', 'ECONNABORTED', 'EHOSTDOWN', 'EHOSTUNREACH', 'ENETDOWN', 'ENETUNREACH',
  'EREMOTEIO', 'ENXIO',
)  # fmt: skip
_CODES = {getattr(errno, name) for name in _PASSING if hasattr(errno, name)}
_TEXTS = (*(os.strerror(code).lower() for code in _CODES), 'resource_exhausted', 'deadline_exceeded', 'unavailable')


def is_passing(error: BaseException) -> bool:
  """Whether a read error, or its cause, is transient: the next try may succeed, and the file is not damaged."""
  while error is not None:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _CODES):
      return True
    if not isinstance(error, OSError) and any(text in str(error).lower() for text in _TEXTS):
      return True  # TensorStore puts the system's words into a message of its own
    error = error.__cause__ or error.__context__  # pyrefly: ignore[bad-assignment]
  return False


def patiently(read: Callable[[], T]) -> T:
  """Calls `read()`, again after a pause where it fails with a transient error."""
  for wait in WAITS:
    try:
      return read()
    except Exception as error:
      if not is_passing(error):
        raise
      time.sleep(wait)
  return read()


def write(folder: pathlib.Path, *, without: Collection[str] = ()) -> None:
  """Writes the digests of all files below a folder but those of the names `without`."""
  files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name not in {NAME, *without})
  with ThreadPoolExecutor(_THREADS) as pool:
    lines = [
      f'{digest}  {path.relative_to(folder).as_posix()}\n'
      for path, digest in zip(files, pool.map(_digest, files), strict=True)
    ]
  with open(folder / NAME, 'w', encoding='utf-8') as file:
    file.writelines(lines)
    file.flush()
    os.fsync(file.fileno())


def has(folder: pathlib.Path) -> bool:
  return (folder / NAME).is_file()


def problem(
  folder: pathlib.Path, *, below: Collection[str] | None = None, share: tuple[int, int] = (0, 1)
) -> str | None:
  """The first problem found with the files of a folder that has digests; None where all match.

  Args:
    folder: folder with a file of digests.
    below: names of the entries to look at; all when None.
    share: `(i, n)` looks at every n-th file, from the i-th.

  Raises:
    OSError: a file cannot be read after several tries, which does not mean that it is damaged.
  """
  text = patiently(functools.partial((folder / NAME).read_bytes)).decode(errors='replace')
  lines = [line.partition('  ') for line in text.splitlines()]
  if not lines or not text.endswith('\n') or any(len(digest) != 64 for digest, _, _ in lines):
    return f'{NAME} is damaged'
  chosen = [(digest, name) for digest, _, name in lines if below is None or name.split('/')[0] in below]
  chosen = chosen[share[0] :: share[1]]
  with ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda pair: _problem_of(folder / pair[1], pair[0]), chosen)
    return next((f'{name} {wrong}' for (_, name), wrong in zip(chosen, found, strict=True) if wrong), None)


def _problem_of(path: pathlib.Path, digest: str) -> str | None:
  try:
    return None if patiently(functools.partial(_digest, path)) == digest else 'is not as it was written'
  except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
    return 'is gone'


def _digest(path: pathlib.Path) -> str:
  digest, buffer = hashlib.sha256(), memoryview(bytearray(min(_CHUNK, path.stat().st_size + 1)))
  with open(path, 'rb') as file:
    while size := file.readinto(buffer):  # less than all of it at the end alone
      whole = size - size % _BLOCK
      words = np.frombuffer(buffer[:whole], '<u8').reshape(-1, _BLOCK // 8)
      digest.update(words.sum(axis=1, dtype=np.uint64).astype('<u8').tobytes())
      digest.update(buffer[whole:size])
  return digest.hexdigest()
