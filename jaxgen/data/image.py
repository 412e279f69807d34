"""Images between a file's bytes and a network's floats: decode, encode, scale, crop.

Files hold uint8 in [0, 255]; networks see float32 in [-1, 1]:

  (1)  x = u / 127.5 - 1

The crop is the one of ADM (Dhariwal & Nichol, 2021, https://arxiv.org/abs/2105.05233): halve with a box filter while
the short side is at least twice the wanted size, resize the short side to it with a bicubic filter, cut the centre.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, UInt8

if TYPE_CHECKING:
  from PIL import Image


def to_float(image: UInt8[np.ndarray, '*shape c']) -> Float32[np.ndarray, '*shape c']:
  """uint8 in [0, 255] to float32 in [-1, 1]."""
  return image.astype(np.float32) / np.float32(127.5) - np.float32(1)  # Eq. 1


def decode_image(data: bytes, *, channels: int = 3, size: int | None = None) -> UInt8[np.ndarray, 'h w {channels}']:
  """Decodes any format that Pillow reads.

  Args:
    data: an encoded image.
    channels: 3 for RGB (transparency is laid on white), 1 for gray.
    size: if given, the image is cropped and resized to `size` x `size` as ADM does.

  Raises:
    ValueError: these bytes are not a whole image.
  """
  from PIL import Image, UnidentifiedImageError

  try:
    with Image.open(io.BytesIO(data)) as image:
      image = on_white(image).convert('RGB' if channels == 3 else 'L')
  except UnidentifiedImageError as error:
    raise ValueError('not a readable image: of no known format') from error
  except Exception as error:  # Pillow's plugins raise about anything on a damaged file.
    raise ValueError(f'not a readable image: {error}') from error
  if size is not None:
    image = center_crop(image, size)
  array = np.asarray(image)
  return array[..., None] if channels == 1 else array


def encode_png(image: UInt8[np.ndarray, 'h w c']) -> bytes:
  """PNG bytes of an RGB (c = 3) or gray (c = 1) image."""
  from PIL import Image

  buffer = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, 'PNG')
  return buffer.getvalue()


def on_white(image: Image.Image) -> Image.Image:
  """Lays an image with transparency on white; gives back any other as it is."""
  from PIL import Image

  if not image.has_transparency_data:
    return image
  image = image.convert('RGBA')
  return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)


def center_crop(image: Image.Image, size: int) -> Image.Image:
  """ADM's `center_crop_arr`: a `size` x `size` image from one of any size."""
  from PIL import Image

  while min(image.size) >= 2 * size:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = size / min(image.size)
  wanted = (round(image.width * scale), round(image.height * scale))
  image = image.resize(wanted, Image.Resampling.BICUBIC)
  left, top = (image.width - size) // 2, (image.height - size) // 2
  return image.crop((left, top, left + size, top + size))
