"""Images in an .npz file, as ADM's evaluation takes samples: `arr_0`, uint8 n h w c, and perhaps labels in `arr_1`.

An array that is stored without compression, as `np.savez` does, is mapped and not read: 50,000 images of 256x256 are
9.8 GB. Nothing is unpickled.
"""

import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

IMAGES = ('arr_0', 'images', 'image', 'samples', 'x')
LABELS = ('arr_1', 'labels', 'label', 'y')
CAPTIONS = ('captions', 'caption', 'text')


class Arrays(NamedTuple):
  images: UInt8[np.ndarray, 'n h w c']
  labels: Integer[np.ndarray, ' n'] | None
  captions: np.ndarray | None  # strings
  checksum: str  # checksum of the whole content


def holds_statistics(path: pathlib.Path) -> bool:
  """Whether a file is an .npz with `mu` and `sigma` rather than images; also for a damaged one."""
  try:
    with zipfile.ZipFile(path) as file:
      return not {f'{name}.npy' for name in IMAGES} & set(file.namelist())
  except (OSError, zipfile.BadZipFile):
    return True


def read_npz(path: pathlib.Path) -> Arrays:
  """The images of an .npz file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, or does not hold images as uint8 n h w c, or labels that do not fit them.
  """
  if not path.is_file():
    raise FileNotFoundError(f'there is no file {path}')
  try:
    with zipfile.ZipFile(path) as file:
      members = {info.filename.removesuffix('.npy'): info for info in file.infolist()}
      arrays = {name: _array(path, file, members[name]) for name in (*IMAGES, *LABELS, *CAPTIONS) if name in members}
      checksum = ' '.join(f'{name} {info.CRC:08x} {info.file_size}' for name, info in sorted(members.items()))
  except (ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
    raise ValueError(f'{path} cannot be read as an .npz file: {error}') from error
  first = lambda names: next((arrays[name] for name in names if name in arrays), None)  # noqa: E731
  images, labels, captions = first(IMAGES), first(LABELS), first(CAPTIONS)
  if images is None:
    raise ValueError(f'{path} holds no images (arr_0, uint8 n h w c); it has {", ".join(members) or "nothing"}')
  if images.ndim == 3:
    images = images[..., None]
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
    raise ValueError(
      f'{path}: the images are {images.dtype} {list(images.shape)}; wanted uint8 [n, height, width, 3 or 1]'
    )
  if labels is not None and labels.shape == (len(images), 1):  # as CIFAR-10 comes from Keras
    labels = labels[:, 0]
  for name, values, kinds, wanted in (('labels', labels, 'iu', 'integers'), ('captions', captions, 'U', 'text, <U')):
    if values is not None and (values.shape != images.shape[:1] or values.dtype.kind not in kinds):
      raise ValueError(
        f'{path}: the {name} are {values.dtype} {list(values.shape)}; wanted {wanted} [{len(images)}], one an image'
      )
  return Arrays(images, labels, captions, checksum)


def _array(path: pathlib.Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  """One array, mapped where it is stored as it is."""
  with file.open(info) as member:
    version = np.lib.format.read_magic(member)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(member)
    header = member.tell()
    if dtype.hasobject:
      raise ValueError(f'{info.filename} holds Python objects, which are not read')
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if header + size != info.file_size:
      raise ValueError(f'{info.filename} has {info.file_size:,} bytes where its shape {shape} wants {header + size:,}')
    if info.compress_type != zipfile.ZIP_STORED:
      member.seek(0)
      return np.lib.format.read_array(member, allow_pickle=False)
  with path.open('rb') as raw:
    raw.seek(info.header_offset)
    local = raw.read(30)
  offset = info.header_offset + 30 + int.from_bytes(local[26:28], 'little') + int.from_bytes(local[28:30], 'little')
  order = 'F' if fortran else 'C'
  return np.memmap(path, dtype, 'r', offset + header, shape, order) if size else np.zeros(shape, dtype)
