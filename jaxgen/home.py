"""The folder that jaxgen keeps between runs: weights, prepared datasets, reference statistics, compiled programs.

It is $JAXGEN_HOME, else ~/.cache/jaxgen. In a bucket, gs://BUCKET/FOLDER, it is shared by hosts, so that none has to
repeat the work of another: libraries that read and write local files only get a mirror of it in
~/.cache/jaxgen/buckets, into which `fetched` brings a file or folder that is not there yet, and from which `kept`
copies what was made here. The same goes for a data_dir in a bucket.
"""

import contextlib
import fcntl
import os
import pathlib
import secrets
import shutil

from etils import epath

_CHUNK = 16 << 20  # bytes


def home() -> pathlib.Path:
  """The folder, or the mirror of one in a bucket. It may not exist yet."""
  return mirror(os.environ.get('JAXGEN_HOME') or pathlib.Path.home() / '.cache' / 'jaxgen')


def compilation() -> str:
  """Where compiled programs are kept, which JAX reads and writes in a bucket itself."""
  place = os.environ.get('JAXGEN_HOME', '')
  return f'{place.rstrip("/")}/compilation' if '://' in place else str(home() / 'compilation')


def mirror(path: str | os.PathLike) -> pathlib.Path:
  """The path on this machine; for one in a bucket, that of its mirror."""
  scheme, separator, rest = os.fspath(path).partition('://')
  return _root() / scheme / rest if separator else pathlib.Path(path).expanduser()


def fetched(path: pathlib.Path, *, last: str = '') -> pathlib.Path:
  """Brings a file or folder of a mirror from its bucket, if it is there and not here; returns its path.

  Args:
    path: path on this machine.
    last: name of the file that makes a folder in the bucket whole; '' for a file.
  """
  there = remote(path)
  if there is None or path.exists():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  with (path.parent / f'.{path.name}.fetch').open('w') as lock:
    with contextlib.suppress(OSError):  # a file system without locks: then several processes fetch it
      fcntl.flock(lock, fcntl.LOCK_EX)
    if not path.exists() and (there / last if last else there).exists():
      _bring(there, path)
  return path


def kept(path: pathlib.Path, *, last: str = '') -> pathlib.Path:
  """Copies a file or folder of a mirror to its bucket, the file `last` of a folder last; returns its path."""
  there = remote(path)
  if there is not None:
    files = sorted(path.rglob('*'), key=lambda file: (file.name == last, file)) if path.is_dir() else [path]
    for file in files:
      if file.is_file():
        _copy(epath.Path(file), there / file.relative_to(path).as_posix() if file != path else there)
  return path


def _bring(there: epath.Path, path: pathlib.Path) -> None:
  """Copies a file or folder from a bucket; it is here as a whole or not at all."""
  temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
  try:
    if there.is_dir():
      _bring_folder(there, temporary)
    else:
      _copy(there, epath.Path(temporary))
    os.rename(temporary, path)
  except BaseException:
    if temporary.is_dir():
      shutil.rmtree(temporary, ignore_errors=True)
    else:
      temporary.unlink(missing_ok=True)
    raise


def _bring_folder(there: epath.Path, folder: pathlib.Path) -> None:
  folder.mkdir()
  for entry in there.iterdir():
    if entry.is_dir():
      _bring_folder(entry, folder / entry.name)
    else:
      _copy(entry, epath.Path(folder / entry.name))


def _copy(source: epath.Path, target: epath.Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  with source.open('rb') as read, target.open('wb') as write:
    shutil.copyfileobj(read, write, _CHUNK)


def _root() -> pathlib.Path:
  return pathlib.Path.home() / '.cache' / 'jaxgen' / 'buckets'


def remote(path: pathlib.Path) -> epath.Path | None:
  """The path in a bucket that a path of this machine mirrors; None for one that mirrors none."""
  try:
    scheme, *rest = path.relative_to(_root()).parts
  except ValueError:
    return None
  return epath.Path(f'{scheme}://{"/".join(rest)}')
