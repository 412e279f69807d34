"""The files in .tar shards, read at their places: nothing is unpacked."""

import os
import pathlib
import posixpath
import tarfile

from jaxgen.data.image import MAX_BYTES
from jaxgen.data.listing import File, Tree, is_hidden
from jaxgen.data.patterns import files


def tar_tree(pattern: str | os.PathLike) -> Tree:
  """The files of one .tar, or of several by a pattern such as `shard-{00..07}.tar`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: one is damaged.
  """
  members: dict[str, tuple[pathlib.Path, int, int]] = {}
  paths = files(os.fspath(pattern), ending='.tar')
  for path in paths:
    try:
      with tarfile.open(path) as archive:
        for info in archive:
          own = posixpath.normpath(info.name)
          if not info.isfile() or '..' in own.split('/') or any(map(is_hidden, own.split('/'))):
            continue
          name = own if len(paths) == 1 else f'{path.stem}/{own}'
          members[name] = (path, info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
      raise ValueError(f'{path} is no whole .tar file: {error}') from error

  def read(name: str) -> bytes:
    path, offset, size = members[name]
    if size > MAX_BYTES:
      raise ValueError(f'{path}: {name} has {size:,} bytes; at most {MAX_BYTES:,} are read')
    with path.open('rb') as file:
      file.seek(offset)
      return file.read(size)

  found = [File(name, size, path.stat().st_mtime_ns) for name, (path, _, size) in members.items()]
  return Tree(pathlib.Path(pattern), tuple(sorted(found, key=lambda file: file.name.split('/'))), read)
