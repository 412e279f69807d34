"""Images of a folder, a .zip, .tar files or an .npz as batches of arrays, whatever their sizes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxgen.data.image import to_float
from jaxgen.data.listing import Tree, image_names, list_images, open_tree, read_image, skipped_text
from jaxgen.data.npz import read_npz
from jaxgen.data.tar_tree import tar_tree

_PENDING_BATCHES = 8  # batches of images that wait for others of their size


class Images(NamedTuple):
  """Images that can be decoded one by one.

  Attributes:
    where: the folder or archive that holds them.
    names: names of the images, sorted.
    decode: name to the image, RGB; a ValueError says that it cannot be decoded.
    skipped: files that were left out: `; skipped 3 files (.mp4: 3)`, or nothing.
    tree: the files, of which captions may be some; None for an array.
  """

  where: Path
  names: Sequence[str]
  decode: Callable[[str], UInt8[np.ndarray, 'h w 3']]
  skipped: str = ''
  tree: Tree | None = None


def open_images(path: Path) -> Images:
  """The images of a folder and its sub-folders, a .zip of one, .tar files, or an .npz of samples.

  Args:
    path: path of the folder or file; of several .tar files a pattern, such as `samples-{00..07}.tar`.

  Raises:
    FileNotFoundError: there is no such folder, or no image in it.
    ValueError: it is neither.
  """
  path = path.expanduser()
  if path.suffix == '.npz' and path.is_file():
    images = read_npz(path).images
    return Images(path, [str(i) for i in range(len(images))], lambda name: _rgb(images[int(name)]))
  if path.suffix.lower() == '.tar':
    tree = tar_tree(path)
  elif path.is_file() and path.suffix.lower() != '.zip':
    raise ValueError(f'{path} is a file; wanted a folder of images, a .zip or .tar of them, or an .npz of samples')
  else:
    tree = open_tree(path)
  names, skipped = image_names(tree)
  return Images(path, names, functools.partial(read_image, tree), skipped_text(skipped), tree)


def captions_of(images: Images) -> list[str]:
  """The caption of each image, as listing.py finds them.

  Raises:
    ValueError: an image has none.
  """
  listed = () if images.tree is None else list_images(images.tree).images
  found = {image.name: image.caption for image in listed if image.caption is not None}
  if missing := [name for name in images.names if name not in found]:
    raise ValueError(
      f'{images.where / missing[0]} has no caption, which the CLIP score needs: metadata.jsonl or a .txt'
    )
  return [found[name] for name in images.names]


def array_images(images: UInt8[np.ndarray, 'n h w c']) -> Images:
  """Images of an array in memory."""
  return Images(Path('an array'), [str(i) for i in range(len(images))], lambda name: _rgb(images[int(name)]))


def image_batches(images: Images, *, batch_size: int) -> Iterator[Float[np.ndarray, 'b h w 3']]:
  """Batches of images of one size each, in [-1, 1].

  Raises:
    ValueError: a file that cannot be decoded; a metric that leaves images out would be another metric.
  """
  return (batch for _, batch in numbered_batches(images, batch_size=batch_size))


def numbered_batches(images: Images, *, batch_size: int) -> Iterator[tuple[list[int], Float[np.ndarray, 'b h w 3']]]:
  """As `image_batches`, with the numbers of the images, which are not in order where sizes differ."""
  pending: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}

  def batch(shape: tuple[int, ...]) -> tuple[list[int], np.ndarray]:
    numbers, found = zip(*pending.pop(shape), strict=True)
    return list(numbers), to_float(np.stack(found))

  with ThreadPoolExecutor() as pool:
    for i in range(0, len(images.names), batch_size):
      for number, image in enumerate(pool.map(images.decode, images.names[i : i + batch_size]), i):
        waiting = pending.setdefault(image.shape, [])
        waiting.append((number, image))
        if len(waiting) == batch_size:
          yield batch(image.shape)
      while sum(map(len, pending.values())) > _PENDING_BATCHES * batch_size:
        yield batch(max(pending, key=lambda shape: len(pending[shape])))
  for shape in list(pending):
    yield batch(shape)


def _rgb(image: UInt8[np.ndarray, 'h w c']) -> UInt8[np.ndarray, 'h w 3']:
  return np.asarray(np.broadcast_to(image, (*image.shape[:2], 3)))
