"""Grids of images, and PNG files."""

import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.files import write_whole
from jaxgen.typing import UInt8

_GAP = 2  # pixels between the images of a grid
_LABEL, _LINE = 220, 18  # pixels that a line of a row's label takes: along, and down
_VIEWABLE = 64  # smaller images are enlarged by a whole factor, so that a grid can be looked at


def grid(
  images: UInt8[np.ndarray, 'n h w c'],
  *,
  columns: int | None = None,
  scale: int | None = None,
  rows: Sequence[str] | None = None,
) -> UInt8[np.ndarray, 'H W 3']:
  """Lays images out in rows on white, two pixels apart.

  Args:
    images: 1 or 3 channels; the last row may be short.
    columns: images in a row; unless given, what makes the grid near square, or one row for each label.
    scale: whole factor of enlargement by nearest neighbour; unless given, small images are enlarged until
      they can be seen.
    rows: labels at the left of the rows.
  """
  n, height, width, channels = images.shape
  if n == 0 or channels not in (1, 3):
    raise ValueError(f'a grid needs at least one image of 1 or 3 channels; got shape {images.shape}')
  if rows is not None and n % len(rows):
    raise ValueError(f'{n} images do not divide over {len(rows)} labelled rows')
  columns = columns or (n // len(rows) if rows else math.ceil(math.sqrt(n)))
  scale = scale or max(1, _VIEWABLE // max(height, width))
  images = np.repeat(images, 3, axis=3) if channels == 1 else images
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  height, width, lines = height * scale, width * scale, math.ceil(n / columns)
  picture = np.full((lines * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
  for i, image in enumerate(images):
    top, left = _GAP + i // columns * (height + _GAP), _GAP + i % columns * (width + _GAP)
    picture[top : top + height, left : left + width] = image
  return np.concatenate([_labels(rows, height, lines), picture], axis=1) if rows else picture


def save_png(path: str | os.PathLike, image: UInt8[np.ndarray, 'h w c']) -> None:
  """Writes a PNG of 1 or 3 channels, whole or not at all."""
  from PIL import Image

  image = image[..., 0] if image.shape[-1] == 1 else image
  data = io.BytesIO()
  Image.fromarray(image).save(data, format='PNG')
  write_whole(path, data.getvalue())


def _labels(rows: Sequence[str], height: int, lines: int) -> UInt8[np.ndarray, 'H W 3']:
  """The column of row labels, right-aligned, of the height of the grid."""
  from PIL import Image, ImageDraw, ImageFont

  font = ImageFont.load_default(size=14)
  texts = [_wrapped(row, font, most=max(1, height // _LINE)) for row in rows]
  width = 12 + max(int(font.getlength(line)) for text in texts for line in text.split('\n'))
  column = Image.new('RGB', (width, lines * (height + _GAP) + _GAP), 'white')
  draw = ImageDraw.Draw(column)
  for i, text in enumerate(texts):
    middle = _GAP + i * (height + _GAP) + height // 2
    draw.multiline_text((width - 6, middle), text, fill='black', font=font, anchor='rm', align='right', spacing=2)
  return np.array(column)


def _wrapped(text: str, font: Any, *, most: int) -> str:
  """The text in lines of _LABEL pixels, as long as there is room for so many; the last line holds the rest."""
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    if lines[-1] and len(lines) < most and font.getlength(longer) > _LABEL:
      lines.append(word)
    else:
      lines[-1] = longer
  return '\n'.join(lines)
