"""Reads an .npz file of arrays whose sizes are checked against the file before memory is taken for them.

`numpy.load` takes what the header of an array asks for, however small the file is.
"""

import os
import zipfile
from collections.abc import Callable

import numpy as np

_DEFLATE = 1032  # times: the most that deflate can compress
_KINDS = 'biufcSU'  # numbers and text; no objects


def read(path: str | os.PathLike, *, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
  """The arrays of a file by name, those that are `wanted`.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is damaged, or an array is not of numbers or text.
  """
  try:
    with zipfile.ZipFile(path) as file:
      members = {info.filename.removesuffix('.npy'): info for info in file.infolist() if wanted(info.filename[:-4])}
      total, there = sum(info.file_size for info in members.values()), os.path.getsize(path)
      if total > _DEFLATE * there:
        raise ValueError(f'it claims {total:,} bytes, which do not fit in {there:,}')
      return {name: _array(file, info) for name, info in members.items()}
  except OSError:
    raise
  except Exception as error:  # zipfile and numpy raise about anything on a damaged file
    text = ' '.join(str(error).split()) or type(error).__name__
    raise ValueError(f'{path} cannot be read as an .npz file: {text:.200}') from error


def names(path: str | os.PathLike) -> list[str]:
  """The names of a file's arrays; errors as of `read`."""
  found: list[str] = []
  read(path, wanted=lambda name: found.append(name) or False)
  return found


def _array(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  with file.open(info) as member:
    version = np.lib.format.read_magic(member)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(member)
    if dtype.kind not in _KINDS or not dtype.itemsize:
      raise ValueError(f'{info.filename} is of dtype {dtype}')
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if member.tell() + size != info.file_size or size > _DEFLATE * info.compress_size:
      raise ValueError(f'{info.filename} has {info.file_size:,} bytes, which its shape does not fill')
    data = member.read()
  if len(data) != size:
    raise ValueError(f'{info.filename} is cut off')
  return np.frombuffer(data, dtype).reshape(shape, order='F' if fortran else 'C')
