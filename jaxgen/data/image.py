"""Images between a file's bytes and a network's floats: decode, encode, scale, crop.

Files hold uint8 in [0, 255]; networks see float32 in [-1, 1]:

  (1)  x = u / 127.5 - 1

This is the one decoder of training data, of folders that are evaluated, and of images that are edited. An image comes
out as a viewer shows it: turned as its EXIF orientation says, transparency on white, the first frame of an animation,
gray of 16 bits or floats scaled to 8 bits. With simplejpeg (the extra `jpeg`) JPEGs are decoded twice as fast, to the
same pixels.

The crop is the one of ADM (Dhariwal & Nichol, 2021, https://arxiv.org/abs/2105.05233): halve with a box filter while
the short side is at least twice the wanted size, resize the short side to it with a bicubic filter, cut the centre.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

if TYPE_CHECKING:
  from PIL import Image

# Pillow's formats that hold pixels. EPS starts Ghostscript, WMF draws through the system, and the others describe a
# film, a page or a grid; what a file is called decides nothing, so they must not be tried.
RASTERS = """
  JPEG PNG WEBP GIF BMP TIFF AVIF HEIF JPEG2000 PPM BLP CUR DCX DDS DIB FITS FLI FTEX GBR ICNS ICO IM IMT MCIDAS MSP PCD
  PCX PIXAR PSD QOI SGI SPIDER SUN TGA XBM XPM XVTHUMB"""
MAX_PIXELS = 2**26  # decoded at a time by one thread: 8192 x 8192, 0.5 GB at most
MAX_BYTES = 2**28  # bytes of an encoded image
_MOST_ENLARGED = 8  # times the pixels that the crop keeps
_BAND = 1024  # rows that are laid on white at a time
_EXIF = {'exif', 'xmp', 'XML:com.adobe.xmp', 'Raw profile type exif'}  # where Pillow keeps what may say it
_ORIENTATION = 0x0112  # EXIF's tag


def to_float(image: UInt8[np.ndarray, '*shape c']) -> Float32[np.ndarray, '*shape c']:
  """uint8 in [0, 255] to float32 in [-1, 1]."""
  return image.astype(np.float32) / np.float32(127.5) - np.float32(1)  # Eq. 1


def decode_image(
  data: bytes, *, channels: int = 3, size: int | tuple[int, int] | None = None
) -> UInt8[np.ndarray, 'h w {channels}']:
  """Decodes any raster format that Pillow reads.

  Args:
    data: an encoded image.
    channels: 3 for RGB, 1 for gray.
    size: if given, the image is cropped and resized as ADM does, to `size` x `size` or to (height, width).

  Raises:
    ValueError: these bytes are not a whole image, or one of too many pixels.
  """
  from PIL import Image, UnidentifiedImageError

  if len(data) > MAX_BYTES:
    raise ValueError(f'not a readable image: {len(data):,} bytes; an image file may have {MAX_BYTES:,}')
  try:
    with Image.open(io.BytesIO(data), formats=_rasters()) as image:
      _fit_in_memory(image, size)
      pixels = _by_simplejpeg(data, image)
      if pixels is None:
        image.load()  # some formats say only then what they hold
      image = _turned(_to_mode(pixels or image, 'RGB' if channels == 3 else 'L'), _orientation(image))
  except UnidentifiedImageError as error:
    raise ValueError('not a readable image: of no known raster format') from error
  except Exception as error:  # Pillow's plugins raise about anything on a damaged file.
    raise ValueError(f'not a readable image: {error}') from error
  if size is not None:
    image = center_crop(image, size)
  array = np.asarray(image)
  return array[..., None] if channels == 1 else array


def is_readable(data: bytes) -> bool:
  """Whether `decode_image` takes these bytes."""
  try:
    decode_image(data)
  except ValueError:
    return False
  return True


def image_shape(data: bytes) -> tuple[int, int]:
  """Height and width of an encoded image, upright, read from its head.

  Raises:
    ValueError: these bytes do not begin as an image does.
  """
  from PIL import Image

  try:
    with Image.open(io.BytesIO(data), formats=_rasters()) as image:
      width, height = image.size
      return (width, height) if _orientation(image) >= 5 else (height, width)
  except Exception as error:
    raise ValueError(f'not a readable image: {error}') from error


def image_endings() -> frozenset[str]:
  """Endings of the file names that are taken for images, in lower case: '.png', '.jpg', ..."""
  from PIL import Image

  known = {'MPO', *_rasters()}  # MPO is opened as JPEG
  return frozenset(ending for ending, form in Image.registered_extensions().items() if form in known)


def _rasters() -> list[str]:
  """The `RASTERS` that this Pillow reads."""
  from PIL import Image

  Image.init()
  return [form for form in RASTERS.split() if form in Image.OPEN]


def encode_png(image: UInt8[np.ndarray, 'h w c']) -> bytes:
  """PNG bytes of an RGB (c = 3) or gray (c = 1) image."""
  from PIL import Image

  buffer = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, 'PNG')
  return buffer.getvalue()


def on_white(image: Image.Image) -> Image.Image:
  """Lays an image with transparency on white, as RGB; gives back any other as it is."""
  from PIL import Image

  if not image.has_transparency_data:
    return image
  image = image if image.mode == 'RGBA' else image.convert('RGBA')
  laid = Image.new('RGB', image.size)
  for top in range(0, image.height, _BAND):  # in bands, for a big image would be in memory four times
    band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
    laid.paste(Image.alpha_composite(Image.new('RGBA', band.size, 'white'), band).convert('RGB'), (0, top))
  return laid


def center_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
  """ADM's `center_crop_arr`: an image of `size` x `size`, or of (height, width), from one of any size."""
  from PIL import Image

  height, width = (size, size) if isinstance(size, int) else size
  while image.width >= 2 * width and image.height >= 2 * height:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = max(width / image.width, height / image.height)
  resized = (max(round(image.width * scale), width), max(round(image.height * scale), height))
  left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
  if resized[0] * resized[1] > _MOST_ENLARGED * width * height:
    # A strip: only the part that is kept is enlarged. Not for all images, because Pillow rounds it otherwise.
    across, down = image.width / resized[0], image.height / resized[1]
    part = (left * across, top * down, (left + width) * across, (top + height) * down)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=part)
  return image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))


def _fit_in_memory(image: Image.Image, size: int | tuple[int, int] | None) -> None:
  """Has a large JPEG decoded at a part of its size where it is to be made smaller anyway.

  Raises:
    ValueError: the image has too many pixels.
  """
  if image.width * image.height > MAX_PIXELS and size is not None:
    height, width = (size, size) if isinstance(size, int) else size
    image.draft(None, (2 * width, 2 * height))  # only JPEG's decoder can; 1/2, 1/4 or 1/8
  if image.width * image.height > MAX_PIXELS:
    raise ValueError(f'{image.width}x{image.height} pixels; an image may have {MAX_PIXELS:,}')


def _by_simplejpeg(data: bytes, image: Image.Image) -> Image.Image | None:
  """The pixels of a JPEG, those of Pillow in half the time; None for others, damaged ones, and without simplejpeg."""
  from PIL import Image

  decode = _simplejpeg()
  if decode is None or image.format != 'JPEG' or image.mode not in ('RGB', 'L'):
    return None
  try:
    pixels = decode(data, colorspace='RGB' if image.mode == 'RGB' else 'GRAY')
  except ValueError:  # Pillow says what is wrong, or that it is not
    return None
  if pixels.shape[:2] != (image.height, image.width):  # to be decoded at a part of its size
    return None
  return Image.fromarray(pixels if image.mode == 'RGB' else pixels[..., 0])


@functools.cache
def _simplejpeg() -> Any:
  try:
    from simplejpeg import decode_jpeg
  except ModuleNotFoundError:
    return None
  return decode_jpeg


def _orientation(image: Image.Image) -> int:
  """EXIF's orientation, 1 to 8; 1 where there is none that can be read, and of a TIFF, which Pillow turns itself."""
  if image.format == 'TIFF' or not image.info.keys() & _EXIF:
    return 1
  try:
    value = image.getexif().get(_ORIENTATION, 1)
  except Exception:  # damaged EXIF data beside whole pixels
    return 1
  return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
  """The image as a viewer shows it that was stored with this EXIF orientation."""
  from PIL.Image import Transpose

  turns = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
  }
  return image.transpose(turns[orientation]) if orientation in turns else image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
  """The pixels as RGB or L, whatever the file holds."""
  image = on_white(_eight_bits(image))
  if image.mode == 'LAB':
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
    image = ImageCms.profileToProfile(image, lab, rgb, outputMode='RGB') or image
  return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
  """Gray of 16 bits, 32 bits or floats, scaled to 8 bits; any other image as it is.

  Floats are taken to lie in [0, 1], [0, 255] or [0, 65535], the first that holds them; where none does, and for
  integers beyond 16 bits, the smallest value becomes black and the largest white.
  """
  from PIL import Image

  if image.mode not in ('I', 'F') and not image.mode.startswith('I;'):
    return image
  values = np.asarray(image)
  clear = image.info.get('transparency')
  hidden = values == clear if isinstance(clear, int) else None
  values = np.where(np.isfinite(values), values, 0) if image.mode == 'F' else values
  low, high = float(values.min()), float(values.max())
  tops = [top for top in (1.0, 255.0, 65535.0) if low >= 0 and high <= top]
  if image.mode != 'F' and tops:
    gray = np.round(np.arange(65536) / 257).astype(np.uint8)[values]
  else:
    first, last = (0.0, tops[0]) if tops else (low, high)
    scaled = (values.astype(np.float32) - np.float32(first)) * np.float32(255 / ((last - first) or 1))
    gray = np.clip(np.round(scaled), 0, 255).astype(np.uint8)
  if hidden is not None:
    gray[hidden] = 255
  return Image.fromarray(gray)
