"""The images of a study: found with their prompts, and shown so that nothing but the picture leaves the server."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.listing import list_images


class Item(NamedTuple):
  """An image file, its name within its folder, and what it shows."""

  path: Path
  name: str
  prompt: str | None


def prompted_images(folder: Path) -> list[Item]:
  """The images of a folder with their prompts: captions (data/listing.py), else names of classes.

  Raises:
    FileNotFoundError: no such folder, or no image in it.
    ValueError: captions that cannot be read.
  """
  if folder.is_file():
    raise ValueError(f'{folder} is a file; wanted a folder of images: unpack it')
  classes = _classes(folder / 'metadata.jsonl')
  return [
    Item((folder / image.name).resolve(), image.name, image.caption or classes.get(image.name) or image.label)
    for image in list_images(folder).images
  ]


def _classes(path: Path) -> dict[str, str]:
  """What `jaxgen sample` writes beside images of classes; lines of other programs say nothing here."""
  if not path.is_file():
    return {}
  records = [json.loads(line) for line in path.read_text(encoding='utf-8-sig').split('\n') if line.strip()]
  named = {str(record.get('file_name')): record.get('class', record.get('label')) for record in records}
  return {name: str(value) for name, value in named.items() if value is not None}


def digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def under_noise(pixels: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'h w 3']:
  """The image with three parts of noise to one of itself, which nobody who looks would prefer."""
  noise = np.random.default_rng(0).integers(0, 256, pixels.shape)
  return (0.25 * pixels + 0.75 * noise).astype(np.uint8)
