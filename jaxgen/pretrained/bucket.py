"""Local copies of files in a bucket, gs://BUCKET/FILE, for libraries that read and write local files only."""

import os
import shutil
import tempfile
from typing import Any, NamedTuple

from etils import epath

from jaxgen.files import in_bucket, replace

_CHUNK = 16 << 20  # bytes


class Here(NamedTuple):
  """A local file.

  Attributes:
    path: its path.
    copy: deletes the file when it is no longer referenced; None for a file that is no copy.
  """

  path: str
  copy: Any = None


def here(path: str | os.PathLike) -> Here:
  """The file itself, or a copy of one in a bucket.

  Raises:
    OSError: it cannot be read.
  """
  if not in_bucket(path):
    return Here(os.fspath(path))
  copy = tempfile.NamedTemporaryFile(prefix='jaxgen-')  # noqa: SIM115  closed when nobody holds it
  with epath.Path(path).open('rb') as file:
    shutil.copyfileobj(file, copy, _CHUNK)
  copy.flush()
  return Here(copy.name, copy)


def move(file: str, path: epath.Path) -> None:
  """Puts a file of this machine in the place of another, on the same disk or in a bucket, at once."""
  if in_bucket(path):
    epath.Path(file).copy(path, overwrite=True)  # an object appears when all of it is there
    os.unlink(file)
  else:
    os.chmod(file, 0o644)
    replace(file, path)
