"""image_folder: any folder of images, cropped and resized once to squares of one size.

`jaxgen data prepare image_folder --source FOLDER --size 256` reads png, jpg and webp files at any depth. If all of them
are in two or more sub-folders, the first sub-folder is the class. A caption is the text of a .txt file beside the
image, of the same name, or of a line of FOLDER/metadata.jsonl, {"file_name": "a/b.png", "text": "..."}.
Cropping and resizing are ADM's (jaxgen/data/image.py).
"""

import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.dataset import Dataset, Record, default_data_dir
from jaxgen.data.image import decode_image
from jaxgen.data.parallel import parallel_map
from jaxgen.data.recipe import Recipe, load, prepare

VERSION = '1.0.0'
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')


class Listed(NamedTuple):
  """One image of the folder, and what the folder says of it."""

  path: pathlib.Path
  label: str | None
  caption: str | None


def image_folder(
  source: str | pathlib.Path,
  split: str = 'train',
  *,
  size: int = 256,
  name: str | None = None,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens a folder of images that `prepare_image_folder` has prepared.

  Args:
    source: the original folder. It need not be on this machine where `name` is given.
    split: 'train' is all of it; 'train[:90%]' and 'train[90%:]' are parts.
    size: height and width.
    name: of the prepared dataset, as given when it was prepared; made from the folder's path when None.
    data_dir: the folder of prepared datasets.
  """
  path = pathlib.Path(data_dir or default_data_dir()).expanduser() / dataset_name(source, size, name) / VERSION
  command = f'image_folder --source {source} --size {size}' + (f' --name {name}' if name else '')
  return load(path, split, command=command)


def prepare_image_folder(
  source: str | pathlib.Path,
  *,
  size: int = 256,
  name: str | None = None,
  max_bad_images: int = 100,
  data_dir: str | pathlib.Path | None = None,
  progress: bool = False,
  overwrite: bool = False,
) -> pathlib.Path:
  """Crops, resizes and writes every image of a folder; returns the prepared dataset's folder.

  Args:
    source: the folder of images.
    size: height and width.
    name: of the prepared dataset, so that it can be opened where the folder is not; made from the path when None.
    max_bad_images: unreadable files that are left out, with a warning each, before it is an error.
    data_dir: the folder of prepared datasets.
    progress: whether a bar is shown, in a terminal.
    overwrite: makes it again where it is there already.
  """
  if size < 1:
    raise ValueError(f'the size of the images is {size}; it must be 1 or more')
  listed = list_images(pathlib.Path(source).expanduser())
  labels = sorted({image.label for image in listed if image.label is not None})
  captions = any(image.caption is not None for image in listed)
  recipe = Recipe(
    name=dataset_name(source, size, name),
    version=VERSION,
    about=f'images of {source}',
    license='that of the images',
    image_shape=(size, size, 3),
    examples=lambda _: {'train': _examples(listed, labels, captions, size, max_bad_images)},
    class_names=tuple(labels),
    texts=('caption',) if captions else (),
  )
  return prepare(recipe, data_dir=data_dir, progress=progress, overwrite=overwrite)


def dataset_name(source: str | pathlib.Path, size: int, name: str | None = None) -> str:
  """The prepared dataset's name: `name`, else the folder's own with a hash of its path; and the size."""
  path = pathlib.Path(source).expanduser().resolve()
  name = name or f'{path.name}_{hashlib.sha256(str(path).encode()).hexdigest()[:6]}'
  return re.sub('[^a-z0-9]+', '_', f'image_folder_{name}_{size}'.lower())


def list_images(source: pathlib.Path) -> list[Listed]:
  """Every image of a folder, by path, with its class and caption.

  Raises:
    FileNotFoundError: there is no such folder, or no image in it.
    ValueError: some images are in class sub-folders and some are not, or a caption cannot be read.
  """
  if not source.is_dir():
    raise FileNotFoundError(f'there is no folder {source}')
  files = sorted(path for path in source.rglob('*') if path.suffix.lower() in SUFFIXES and path.is_file())
  if not files:
    raise FileNotFoundError(f'{source} has no images ({", ".join(SUFFIXES)})')
  folders = {path.relative_to(source).parts[0] for path in files if path.parent != source}
  loose = [path for path in files if path.parent == source]
  if len(folders) > 1 and loose:
    raise ValueError(
      f'{source} has images in sub-folders (classes) and {len(loose)} outside of them, such as {loose[0].name}; '
      'move those into a sub-folder'
    )
  captions = read_metadata(source)
  return [
    Listed(
      path=path,
      label=path.relative_to(source).parts[0] if len(folders) > 1 else None,
      caption=_caption(path, captions),
    )
    for path in files
  ]


def read_metadata(source: pathlib.Path) -> dict[pathlib.Path, str]:
  """Captions from `metadata.jsonl`: {"file_name": ..., "text": ...} a line."""
  path = source / 'metadata.jsonl'
  captions = {}
  lines = _text(path).split('\n') if path.exists() else []  # splitlines() would also split within a caption
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      entry = json.loads(line)
      captions[source / entry['file_name']] = str(entry['text'])
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{path}, line {number}: wanted {{"file_name": "a.png", "text": "a caption"}}, got {line[:80]!r}'
      ) from error
  missing = [file for file in captions if not file.is_file()]
  if missing:
    raise ValueError(f'{path} names {len(missing)} files that do not exist, such as {missing[0]}')
  return captions


def _caption(path: pathlib.Path, captions: dict[pathlib.Path, str]) -> str | None:
  beside = path.with_suffix('.txt')
  return _text(beside).strip() if beside.exists() else captions.get(path)


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8 text ({error}); write it again as UTF-8') from error


def _examples(
  listed: list[Listed], labels: list[str], captions: bool, size: int, max_bad_images: int
) -> Iterator[Record]:
  def read(image: Listed) -> UInt8[np.ndarray, 'h w 3'] | ValueError:
    try:
      return decode_image(image.path.read_bytes(), size=size)
    except ValueError as error:
      return error

  bad = 0
  for image, pixels in zip(listed, parallel_map(read, listed), strict=True):
    if isinstance(pixels, ValueError):
      bad += 1
      logging.warning('%s is left out: %s', image.path, pixels)
      if bad > max_bad_images or bad == len(listed):
        raise ValueError(
          f'{bad} unreadable images, and max_bad_images is {max_bad_images}; the last: {image.path}: {pixels}'
        )
      continue
    example: Record = {'image': pixels}
    if image.label is not None:
      example['label'] = labels.index(image.label)
    if captions:
      example['caption'] = image.caption or ''
    yield example
