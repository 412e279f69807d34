"""IDX files, as MNIST and those that took its form are published: images and labels of a training and a test split."""

import gzip
import math
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.dataset import Record
from jaxgen.data.recipe import Examples

_DEFLATE = 1032  # times: the most that gzip can compress
PREFIXES = {'train': 'train', 'test': 't10k'}


def examples(place: pathlib.Path, *, missing: str) -> Examples:
  """The examples of the four files in a folder, as they are or with .gz.

  Raises:
    FileNotFoundError: one is not there; `missing` says how to get it.
  """
  return {
    split: _split(
      read_idx(_find(place, f'{prefix}-images-idx3-ubyte', missing)),
      read_idx(_find(place, f'{prefix}-labels-idx1-ubyte', missing)),
    )
    for split, prefix in PREFIXES.items()
  }


def read_idx(path: pathlib.Path) -> UInt8[np.ndarray, '...']:
  """Reads an IDX file of bytes: 0, 0, 8 (uint8), number of axes; each axis as a big-endian int32; the values.

  Raises:
    ValueError: it is not such a file, or is cut off.
  """
  there = path.stat().st_size
  try:
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
      head = file.read(4)
      axes = head[3] if len(head) == 4 else 0
      sizes = file.read(4 * axes)
      if head[:3] != b'\x00\x00\x08' or len(sizes) < 4 * axes:
        raise ValueError(f'{path} is no IDX file of bytes: it starts with {head.hex(" ")}')
      shape = tuple(np.frombuffer(sizes, '>u4').tolist())
      wanted = math.prod(shape)
      if wanted > _DEFLATE * there:
        raise ValueError(f'{path} is cut off: {there} bytes for the shape {shape}')
      values = np.frombuffer(file.read(wanted + 1), np.uint8)
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  if values.size != wanted:
    raise ValueError(f'{path} is cut off: {values.size} values for the shape {shape}')
  return values.reshape(shape)


def _find(place: pathlib.Path, name: str, missing: str) -> pathlib.Path:
  for path in (place / name, place / f'{name}.gz'):
    if path.exists():
      return path
  raise FileNotFoundError(f'{place} has no {name} or {name}.gz; {missing}')


def _split(images: UInt8[np.ndarray, 'n 28 28'], labels: UInt8[np.ndarray, 'n']) -> Iterator[Record]:
  for image, label in zip(images, labels, strict=True):
    yield {'image': image[..., None], 'label': int(label)}
