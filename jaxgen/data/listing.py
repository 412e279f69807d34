"""The images that lie in a folder or a .zip file, with their classes and captions.

This is the one lister of training data, of folders that are evaluated, and of images that are edited. It follows links
to folders, leaves out what begins with `.` and what systems leave behind (`__MACOSX`), and takes every raster format
that Pillow reads, by the ending of a file's name in any letter case.

If all images are in two or more sub-folders, the first sub-folder is the class; if those are called train, test and
the like, they are splits, and classes are below them. Captions are as Hugging Face's `imagefolder` has them: a .txt
file beside the image, or a metadata.jsonl or metadata.csv in any folder, with `file_name` and `text` or `caption`.
"""

import collections
import csv
import functools
import hashlib
import io
import json
import os
import pathlib
import posixpath
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.fields import CAPTIONS, caption_of, decode_text
from jaxgen.data.image import MAX_BYTES, decode_image, image_endings, is_readable

LEFT_BEHIND = {'__MACOSX', '@eaDir', '#recycle', '$RECYCLE.BIN'}  # by macOS, Synology and Windows
SPLITS = {
  'train': ('train', 'training'),
  'validation': ('validation', 'valid', 'val', 'dev'),
  'test': ('test', 'testing'),
}
METADATA = ('metadata.jsonl', 'metadata.csv')


class File(NamedTuple):
  """One file: its name below the source with '/' between folders, its size in bytes, and what changes with it."""

  name: str
  size: int
  version: int  # nanoseconds of its last change; a checksum in a .zip


class Tree(NamedTuple):
  """The files below a folder or in a .zip, sorted by name, and how to read one of them."""

  where: pathlib.Path
  files: tuple[File, ...]
  read: Callable[[str], bytes]

  def fingerprint(self) -> str:
    """Changes with the name, size or time of any file that images or captions come from."""
    digest, endings = hashlib.sha256(), image_endings() | {'.txt', *map(ending, METADATA)}
    for file in self.files:
      if ending(file.name) in endings:
        digest.update(f'{os.fsencode(file.name).hex()} {file.size} {file.version}\n'.encode())
    return digest.hexdigest()


class Listed(NamedTuple):
  """One image, and its label and caption in the source."""

  name: str
  label: str | None
  caption: str | None


class Listing(NamedTuple):
  """The images of a source by split, and the files that were left out.

  Attributes:
    tree: the folder or archive that holds them.
    splits: the images of each split; {'train': all} where no folders are named so.
    skipped: how many files were not taken, by the endings of their names.
  """

  tree: Tree
  splits: Mapping[str, tuple[Listed, ...]]
  skipped: Mapping[str, int]

  @property
  def images(self) -> tuple[Listed, ...]:
    return tuple(image for images in self.splits.values() for image in images)

  @property
  def class_names(self) -> tuple[str, ...]:
    return tuple(sorted({image.label for image in self.images if image.label is not None}))

  @property
  def has_captions(self) -> bool:
    return any(image.caption is not None for image in self.images)

  def summary(self) -> str:
    """`12 images, 3 classes; skipped 4 files (.mp4: 3, .db: 1)`"""
    parts = [_count(len(self.images), 'image')]
    parts += [', '.join(f'{len(images):,} {split}' for split, images in self.splits.items())] * (len(self.splits) > 1)
    parts += [_count(len(self.class_names), 'class', 'classes') if self.class_names else 'no classes']
    parts += ['captions'] if self.has_captions else []
    return f'{", ".join(parts)}{skipped_text(self.skipped)}'


def _count(number: int, one: str, many: str = '') -> str:
  return f'{number:,} {one if number == 1 else many or one + "s"}'


def skipped_text(skipped: Mapping[str, int]) -> str:
  """`; skipped 4 files (.mp4: 3, .db: 1)`, or nothing."""
  if not skipped:
    return ''
  most = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
  kinds = [f'{ending or "no ending"}: {number:,}' for ending, number in most[:8]]
  return f'; skipped {_count(sum(skipped.values()), "file")} ({", ".join(kinds)}{", ..." * (len(most) > 8)})'


def open_tree(source: str | os.PathLike) -> Tree:
  """The files of a folder, or of a .zip.

  Raises:
    FileNotFoundError: there is neither.
    ValueError: the .zip is damaged.
  """
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return _folder(path)
  if path.is_file() and zipfile.is_zipfile(path):
    return _zip(path)
  if path.exists():
    raise ValueError(f'{path} is neither a folder nor a whole .zip file')
  raise FileNotFoundError(f'there is no folder {path}')


def open_file(path: pathlib.Path) -> Tree:
  """One file, as the only one of its folder."""
  about = path.stat()
  return Tree(path.parent, (File(path.name, about.st_size, about.st_mtime_ns),), _reader(path.parent))


def read_image(tree: Tree, name: str, *, channels: int = 3, size: int | None = None) -> UInt8[np.ndarray, 'h w c']:
  """One image, as `decode_image` has it.

  Raises:
    ValueError: it cannot be decoded; the message names the file.
  """
  try:
    return decode_image(tree.read(name), channels=channels, size=size)
  except ValueError as error:
    raise ValueError(f'{tree.where / name} cannot be decoded ({error}); remove it or make it again') from error


def list_images(source: str | os.PathLike | Tree) -> Listing:
  """The images of a folder or .zip for training: with splits, classes and captions.

  Raises:
    FileNotFoundError: there is no such folder, or no image in it.
    ValueError: some images are in class sub-folders and some are not, or a caption cannot be read.
  """
  tree = source if isinstance(source, Tree) else open_tree(source)
  images, skipped = image_names(tree)
  captions = _captions(tree, images)
  splits = {split: _labelled(tree, names, below, captions) for split, (names, below) in _by_split(images).items()}
  taken = sum(map(len, splits.values()))
  left = collections.Counter(skipped)
  if taken < len(images):  # folders in which no image can be read
    kept = {image.name for found in splits.values() for image in found}
    left.update(ending(name) for name in images if name not in kept)
  if not taken:
    raise FileNotFoundError(f'{tree.where} has no image that can be read{skipped_text(left)}')
  if len({images[0].label is None for images in splits.values() if images}) > 1:
    raise ValueError(f'{tree.where} has classes in some of {", ".join(splits)} and not in others; make them alike')
  return Listing(tree, splits, dict(left))


def image_names(tree: Tree) -> tuple[tuple[str, ...], dict[str, int]]:
  """Names of a source's image files, and how many others there are by ending, captions aside.

  Raises:
    FileNotFoundError: there is no image.
  """
  endings = image_endings()
  images = tuple(file.name for file in tree.files if ending(file.name) in endings)
  stems = {posixpath.splitext(name)[0] for name in images}
  others = [file.name for file in tree.files if ending(file.name) not in endings and not _is_caption(file.name, stems)]
  skipped = dict(collections.Counter(map(ending, others)))
  if not images:
    raise FileNotFoundError(f'{tree.where} has no images{skipped_text(skipped)}')
  return images, skipped


def ending(name: str) -> str:
  return posixpath.splitext(name)[1].lower()


def _is_caption(name: str, stems: set[str]) -> bool:
  stem, suffix = posixpath.splitext(name)
  return _is_metadata(name) or (suffix.lower() == '.txt' and stem in stems)


def _is_metadata(name: str) -> bool:
  return posixpath.basename(name).lower() in METADATA


# --- files


def is_hidden(name: str) -> bool:
  """Whether a file or folder is no part of a dataset, by its own name."""
  return name.startswith('.') or name in LEFT_BEHIND


def _folder(path: pathlib.Path) -> Tree:
  return Tree(path, tuple(sorted(_walk(str(path), '', ()), key=_by_parts)), _reader(path))


def _reader(folder: pathlib.Path) -> Callable[[str], bytes]:
  def read(name: str) -> bytes:
    file = folder / name
    size = file.stat().st_size
    if size > MAX_BYTES:
      raise ValueError(f'{file} has {size:,} bytes; at most {MAX_BYTES:,} are read')
    return file.read_bytes()

  return read


def _by_parts(file: File) -> list[str]:
  return file.name.split('/')


def _walk(folder: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[File]:
  """Regular files; a link to a folder that the walk came through is left, or it would go round for ever."""
  here = os.stat(folder)
  if (here.st_dev, here.st_ino) in above:
    return
  above = (*above, (here.st_dev, here.st_ino))
  with os.scandir(folder) as entries:
    for entry in entries:
      if is_hidden(entry.name):
        continue
      try:
        about = entry.stat()
      except OSError:  # a link to nothing
        continue
      if stat.S_ISDIR(about.st_mode):
        yield from _walk(entry.path, f'{below}{entry.name}/', above)
      elif stat.S_ISREG(about.st_mode):
        yield File(below + entry.name, about.st_size, about.st_mtime_ns)


def _zip(path: pathlib.Path) -> Tree:
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
    raise ValueError(f'{path} is no whole .zip file: {error}') from error
  members = {}
  for info in archive.infolist():
    name = info.filename.replace('\\', '/')  # as some programs of Windows write it
    parts = name.split('/')
    if parts[-1] and '..' not in parts and not any(map(is_hidden, parts)):
      members[name] = info
  top = _common_folder(list(members))

  def read(name: str) -> bytes:
    try:
      with archive.open(members[top + name]) as file:
        data = file.read(MAX_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
      raise ValueError(f'{path}: {top + name} cannot be read: {error}') from error
    if len(data) > MAX_BYTES:
      raise ValueError(f'{path}: {top + name} has over {MAX_BYTES:,} bytes, more than are read')
    return data

  files = [File(name[len(top) :], info.file_size, info.CRC) for name, info in members.items()]
  return Tree(path, tuple(sorted(files, key=_by_parts)), read)


def _common_folder(names: Sequence[str]) -> str:
  """`photos/`, of a .zip that holds one folder, else nothing."""
  tops = {name.split('/', 1)[0] if '/' in name else None for name in names}
  top = next(iter(tops)) if len(tops) == 1 else None
  return '' if top is None else f'{top}/'


# --- splits and classes


def _by_split(names: Sequence[str]) -> dict[str, tuple[list[str], str]]:
  """{split: (its images, the folder they are in)}; all of them are 'train' unless every folder is called as a split."""
  known = {name: split for split, names in SPLITS.items() for name in names}
  tops = dict.fromkeys(name.split('/')[0] if '/' in name else '' for name in names)
  found = {top: known.get(top.lower()) for top in tops}
  if len(set(found.values())) < len(found) or None in found.values() or 'train' not in found.values():
    return {'train': (list(names), '')}
  return {
    split: ([name for name in names if name.startswith(f'{top}/')], f'{top}/')
    for split in SPLITS
    for top, its in found.items()
    if its == split
  }


def _labelled(tree: Tree, names: Sequence[str], below: str, captions: Mapping[str, str]) -> tuple[Listed, ...]:
  folders: dict[str, list[str]] = {}
  for name in names:
    rest = name[len(below) :]
    folders.setdefault(rest.split('/')[0] if '/' in rest else '', []).append(name)
  loose = folders.pop('', [])
  if len(folders) > 1:  # a folder without a readable image is no class
    folders = {folder: found for folder, found in folders.items() if any(map(functools.partial(_opens, tree), found))}
  if len(folders) > 1 and loose:
    raise ValueError(
      f'{tree.where} has images in sub-folders (classes) and {len(loose)} outside of them, such as {loose[0]!r}; '
      'move those into a sub-folder'
    )
  labelled = len(folders) > 1
  return tuple(
    Listed(name, folder if labelled else None, captions.get(name))
    for folder, found in {'': loose, **folders}.items()
    for name in found
  )


def _opens(tree: Tree, name: str) -> bool:
  try:
    return is_readable(tree.read(name))
  except (OSError, ValueError):
    return False


# --- captions


def _captions(tree: Tree, images: Sequence[str]) -> dict[str, str]:
  """Captions by name of the image: a .txt beside it, else the metadata of the nearest folder."""
  names = {file.name for file in tree.files}
  captions: dict[str, str | None] = {}
  for name in sorted(filter(_is_metadata, names), key=lambda name: name.count('/')):
    captions |= _metadata(tree, name, names)
  beside = {posixpath.splitext(name)[0]: name for name in names if ending(name) == '.txt'}
  for image in images:
    text = beside.get(posixpath.splitext(image)[0])
    if text is not None:
      captions[image] = _text(tree, text).strip()
  return {name: caption for name, caption in captions.items() if caption is not None}


def _metadata(tree: Tree, name: str, names: set[str]) -> dict[str, str | None]:
  """Captions from a metadata.jsonl or metadata.csv, whose file names are relative to its folder.

  Raises:
    ValueError: it names a file that is not there, or a line cannot be read.
  """
  folder, found = posixpath.dirname(name), {}
  composed = {unicodedata.normalize('NFC', file): file for file in names}  # macOS writes accents as letters apart
  for number, entry in _entries(tree, name):
    file = entry.get('file_name')
    if not isinstance(file, str):
      raise _bad_line(tree, name, number, str(entry))
    if os.sep != '\\' and '\\' in file and posixpath.join(folder, file) not in names:
      file = file.replace('\\', '/')
    path = posixpath.normpath(posixpath.join(folder, file))
    path = path if path in names else composed.get(unicodedata.normalize('NFC', path), path)
    try:
      found[path] = next(filter(None, map(caption_of, map(entry.get, CAPTIONS))), None)
    except ValueError as error:
      raise ValueError(f'{tree.where / name}, line {number}: {error}') from error
  missing = [file for file in found if file not in names]
  if missing:
    raise ValueError(f'{tree.where / name} names {len(missing)} files that do not exist, such as {missing[0]!r}')
  return found


def _entries(tree: Tree, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
  text = _text(tree, name)
  if ending(name) == '.csv':
    try:
      rows = list(csv.DictReader(io.StringIO(text, newline=''), strict=True))
    except csv.Error as error:
      raise ValueError(f'{tree.where / name} cannot be read as CSV: {error}') from error
    for number, row in enumerate(rows, start=2):  # a cell that is empty says nothing
      yield number, {key: value or None for key, value in row.items() if isinstance(key, str)}
    return
  for number, line in enumerate(text.split('\n'), start=1):  # splitlines() would also split within a caption
    if line.strip():
      try:
        entry = json.loads(line)
      except (ValueError, RecursionError):
        entry = None
      if not isinstance(entry, dict):
        raise _bad_line(tree, name, number, line)
      yield number, entry


def _bad_line(tree: Tree, name: str, number: int, line: str) -> ValueError:
  return ValueError(
    f'{tree.where / name}, line {number}: wanted file_name and text, such as '
    f'{{"file_name": "a.png", "text": "a caption"}}, got {line[:80]!r}'
  )


def _text(tree: Tree, name: str) -> str:
  try:
    return decode_text(tree.read(name))
  except ValueError as error:
    raise ValueError(f'{tree.where / name}: {error}') from error
