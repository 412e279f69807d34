"""Pictures that move: WebP, PNG and GIF by Pillow, MP4 by ffmpeg (the extra `video`)."""

import io
import os
import tempfile
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from jaxgen.files import write_whole
from jaxgen.typing import UInt8

_FORMATS = {'.webp': 'WEBP', '.png': 'PNG', '.gif': 'GIF'}


def check(path: str | os.PathLike) -> None:
  """Raises ValueError where an animation cannot be written under this name."""
  suffix = epath.Path(path).suffix.lower()
  if suffix == '.mp4':
    _ffmpeg()
  elif suffix not in _FORMATS:
    raise ValueError(f'{epath.Path(path).name}: an animation is a {", ".join(_FORMATS)} or .mp4 file')


def write(path: epath.Path, frames: UInt8[np.ndarray, 'f h w c'], *, frames_per_second: int) -> None:
  """Writes an animated WebP, PNG or GIF, which loops, or an MP4, by the path's suffix; the file is complete or absent.

  Raises:
    ValueError: another suffix, or imageio-ffmpeg is missing for MP4.
  """
  check(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix.lower() == '.mp4':
    write_whole(path, _mp4(frames, frames_per_second))
    return
  first, *rest = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
  data, duration = io.BytesIO(), round(1000 / frames_per_second)
  options = {'lossless': True} if path.suffix == '.webp' else {}
  kind = _FORMATS[path.suffix.lower()]
  first.save(data, kind, save_all=True, append_images=rest, duration=duration, loop=0, **options)
  write_whole(path, data.getvalue())


def _mp4(frames: UInt8[np.ndarray, 'f h w c'], frames_per_second: int) -> bytes:
  """H.264, with images of less than 256 pixels enlarged by a whole factor, since players blur small ones."""
  scale = max(1, 256 // min(frames.shape[1:3]))
  frames = np.broadcast_to(frames, (*frames.shape[:3], 3)).repeat(scale, axis=1).repeat(scale, axis=2)
  height, width = frames.shape[1:3]
  with tempfile.TemporaryDirectory() as folder:
    name = os.path.join(folder, 'made.mp4')
    file = _ffmpeg().write_frames(name, (width, height), fps=frames_per_second, macro_block_size=2, quality=8)
    file.send(None)
    for frame in frames:
      file.send(np.ascontiguousarray(frame))
    file.close()
    with open(name, 'rb') as made:
      return made.read()


def _ffmpeg() -> Any:
  try:
    import imageio_ffmpeg
  except ModuleNotFoundError as error:
    raise ValueError("an .mp4 needs imageio-ffmpeg: pip install 'jaxgen[video]'; .webp needs nothing") from error
  return imageio_ffmpeg
