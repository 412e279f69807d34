"""Images of a folder, a .zip or an .npz as batches of arrays, whatever their sizes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxgen.data.image import to_float
from jaxgen.data.listing import image_names, open_tree, read_image, skipped_text
from jaxgen.data.npz import read_npz

_PENDING_BATCHES = 8  # batches of images that wait for others of their size


class Images(NamedTuple):
  """Images that can be decoded one by one.

  Attributes:
    where: the folder or archive that holds them.
    names: names of the images, sorted.
    decode: name to the image, RGB; a ValueError says that it cannot be decoded.
    skipped: files that were left out: `; skipped 3 files (.mp4: 3)`, or nothing.
  """

  where: Path
  names: Sequence[str]
  decode: Callable[[str], UInt8[np.ndarray, 'h w 3']]
  skipped: str = ''


def open_images(path: Path) -> Images:
  """The images of a folder and its sub-folders, a .zip of one, or an .npz of samples.

  Raises:
    FileNotFoundError: there is no such folder, or no image in it.
    ValueError: it is neither.
  """
  path = path.expanduser()
  if path.suffix == '.npz' and path.is_file():
    images = read_npz(path).images
    return Images(path, [str(i) for i in range(len(images))], lambda name: _rgb(images[int(name)]))
  if path.is_file() and path.suffix.lower() != '.zip':
    raise ValueError(f'{path} is a file; wanted a folder of images, a .zip of one, or an .npz of samples')
  tree = open_tree(path)
  names, skipped = image_names(tree)

  return Images(path, names, functools.partial(read_image, tree), skipped_text(skipped))


def array_images(images: UInt8[np.ndarray, 'n h w c']) -> Images:
  """Images of an array in memory."""
  return Images(Path('an array'), [str(i) for i in range(len(images))], lambda name: _rgb(images[int(name)]))


def image_batches(images: Images, *, batch_size: int) -> Iterator[Float[np.ndarray, 'b h w 3']]:
  """Batches of images of one size each, in [-1, 1].

  Raises:
    ValueError: a file that cannot be decoded; a metric that leaves images out would be another metric.
  """
  pending: dict[tuple[int, ...], list[np.ndarray]] = {}
  with ThreadPoolExecutor() as pool:
    for i in range(0, len(images.names), batch_size):
      for image in pool.map(images.decode, images.names[i : i + batch_size]):
        waiting = pending.setdefault(image.shape, [])
        waiting.append(image)
        if len(waiting) == batch_size:
          yield to_float(np.stack(pending.pop(image.shape)))
      while sum(map(len, pending.values())) > _PENDING_BATCHES * batch_size:
        yield to_float(np.stack(pending.pop(max(pending, key=lambda shape: len(pending[shape])))))
  for waiting in pending.values():
    yield to_float(np.stack(waiting))


def _rgb(image: UInt8[np.ndarray, 'h w c']) -> UInt8[np.ndarray, 'h w 3']:
  return np.asarray(np.broadcast_to(image, (*image.shape[:2], 3)))
