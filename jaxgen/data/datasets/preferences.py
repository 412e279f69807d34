"""Pairs of images for one prompt of which one is better, as `jaxgen vote export` writes them.

  {"prompt": "a cat", "chosen": "ours/0.png", "rejected": "theirs/0.png", ...}         one line a pair

A record has 'image' (the better one), 'rejected' and 'caption'. Paths that are not absolute start at the file's folder.
A pair whose prompt was not asked for, as in a study of images alone, has an empty caption.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.fields import decode_text
from jaxgen.data.image import decode_image, to_float

_SIDES = {'chosen': 'image', 'rejected': 'rejected'}


def preferences(path: str | os.PathLike, *, size: int, question: str = '') -> Dataset:
  """Opens a file of pairs; the images are read as they are asked for.

  Args:
    path: the file.
    size: height and width; images are cropped and resized as those of image_folder.
    question: takes the answers to this question alone, such as 'text'; all where it is empty.

  Raises:
    FileNotFoundError: the file, or an image that it names, is not there.
    ValueError: a line is no pair, or none is left.
  """
  path = pathlib.Path(path).expanduser()
  pairs, digest = [], hashlib.sha256(f'{size} {question}'.encode())
  for number, line in enumerate(decode_text(path.read_bytes()).rstrip('\n').split('\n'), 1):
    pair = _pair(line, f'{path}:{number}')
    if question and pair.get('question') != question:
      continue
    found = {side: path.parent / pathlib.Path(pair[side]).expanduser() for side in _SIDES}
    for side, image in found.items():
      if not image.is_file():
        raise FileNotFoundError(f'{path}:{number}: the {side} image {image} is not there')
      about = image.stat()
      digest.update(f'{image} {about.st_size} {about.st_mtime_ns}'.encode())
    digest.update(line.encode())
    pairs.append({**found, 'prompt': pair.get('prompt') or ''})
  if not pairs:
    raise ValueError(f'{path} has no pairs' + (f' for the question {question!r}' if question else ''))

  def decode(pair: dict[str, Any]) -> Record:
    images = {name: to_float(decode_image(pair[side].read_bytes(), size=size)) for side, name in _SIDES.items()}
    return {**images, 'caption': pair['prompt']}

  return Dataset(f'preferences of {path.name}', 'train', pairs, decode, digest.hexdigest())


def _pair(line: str, where: str) -> dict[str, Any]:
  try:
    pair = json.loads(line)
  except ValueError as error:
    raise ValueError(f'{where} is not JSON: {error}') from error
  if not isinstance(pair, dict) or not all(isinstance(pair.get(side), str) for side in _SIDES):
    raise ValueError(f'{where} is no pair; wanted {{"prompt": ..., "chosen": PATH, "rejected": PATH}} on each line')
  return pair
