"""A folder of image files as batches of arrays, whatever the sizes of the images."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

_EXTENSIONS = {'.png', '.jpg', '.jpeg', '.webp', '.bmp'}
_PENDING_BATCHES = 8  # of images that wait for others of their size


def image_files(folder: Path) -> list[Path]:
  """The image files in a folder and its sub-folders, sorted.

  Raises:
    FileNotFoundError: no such folder, or no image in it.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder} is not a folder')
  files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in _EXTENSIONS)
  if not files:
    raise FileNotFoundError(f'{folder} has no images ({", ".join(sorted(_EXTENSIONS))})')
  return files


def image_batches(files: list[Path], *, batch_size: int) -> Iterator[Float[np.ndarray, 'b h w 3']]:
  """Batches of images of one size each, in [-1, 1].

  Raises:
    ValueError: a file that cannot be decoded; a metric that leaves images out would be another metric.
  """
  pending: dict[tuple[int, ...], list[np.ndarray]] = {}
  with ThreadPoolExecutor() as pool:
    for i in range(0, len(files), batch_size):
      for image in pool.map(_decode, files[i : i + batch_size]):
        waiting = pending.setdefault(image.shape, [])
        waiting.append(image)
        if len(waiting) == batch_size:
          yield _batch(pending.pop(image.shape))
      while sum(map(len, pending.values())) > _PENDING_BATCHES * batch_size:
        yield _batch(pending.pop(max(pending, key=lambda shape: len(pending[shape]))))
  for waiting in pending.values():
    yield _batch(waiting)


def _batch(images: list[np.ndarray]) -> np.ndarray:
  return np.stack(images).astype(np.float32) / np.float32(127.5) - np.float32(1)


def _decode(path: Path) -> UInt8[np.ndarray, 'h w 3']:
  """RGB, with transparency laid on white."""
  from PIL import Image

  try:
    with Image.open(path) as image:
      if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
      return np.asarray(image.convert('RGB'))
  except Exception as error:  # Pillow's plugins raise about anything on a damaged file
    raise ValueError(f'{path} cannot be decoded ({error}); remove it or make it again') from error
