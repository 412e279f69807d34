"""Turns encoded images of any origin into the examples of a recipe: decodes, crops and leaves out unreadable ones."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.dataset import Record
from jaxgen.data.image import decode_image, encode_png
from jaxgen.data.job import Encoded, Numbered
from jaxgen.data.parallel import parallel_map


class Picture(NamedTuple):
  """One image before it is read.

  Attributes:
    where: its name in messages.
    read: gives its encoded bytes; a ValueError says that it has none.
    fields: further fields of its record: 'label', 'caption'.
  """

  where: str
  read: Callable[[], bytes]
  fields: dict[str, Any]


def examples(
  pictures: Iterable[Picture], *, size: int | tuple[int, int], max_bad_images: int = 100
) -> Iterator[Record]:
  """Decodes and crops, on all cores and in order.

  Args:
    pictures: pictures to read.
    size: size of the images, as `decode_image` takes it.
    max_bad_images: unreadable ones that are left out, with a warning each.

  Raises:
    ValueError: there are more, or all are unreadable.
  """

  def read(picture: Picture) -> tuple[Picture, UInt8[np.ndarray, 'h w 3'] | ValueError]:
    try:
      return picture, decode_image(picture.read(), size=size)
    except ValueError as error:
      return picture, error

  good, bad, last = 0, 0, ''
  for picture, pixels in parallel_map(read, pictures):
    if isinstance(pixels, ValueError):
      bad, last = bad + 1, f'{picture.where}: {pixels}'
      logging.warning('%s is left out: %s', picture.where, pixels)
      if bad > max_bad_images:
        break
    else:
      good += 1
      yield {'image': pixels, **picture.fields}
  if bad > max_bad_images or (bad and not good):
    raise ValueError(f'{bad} unreadable images, and max_bad_images is {max_bad_images}; the last: {last}')


def numbered(
  pictures: Callable[[int], Picture],
  num: int,
  *,
  size: int | tuple[int, int],
  max_bad_images: int = 100,
  blocks: Sequence[int] = (),
) -> Numbered:
  """As `examples`, of pictures that any process can read by number; each process may leave out `max_bad_images`.

  With `blocks`, as of `Numbered`, it asks for the pictures of a block one after the other.
  """

  def read(picture: Picture) -> tuple[Picture, Encoded | ValueError]:
    try:
      pixels = decode_image(picture.read(), size=size)
      return picture, Encoded(pixels, encode_png(pixels))
    except ValueError as error:
      return picture, error

  def make(shards: Sequence[Sequence[int]]) -> Iterator[Sequence[Record]]:
    bad = 0
    for picture, image in parallel_map(read, (pictures(number) for shard in shards for number in shard)):
      if isinstance(image, ValueError):
        bad += 1
        logging.warning('%s is left out: %s', picture.where, image)
        if bad > max_bad_images or bad == num:
          raise ValueError(
            f'{bad} unreadable images, and max_bad_images is {max_bad_images}; the last: {picture.where}: {image}'
          )
        yield []
      else:
        yield [{'image': image, **picture.fields}]

  return Numbered(num, make, blocks=blocks)
