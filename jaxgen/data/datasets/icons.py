"""icons: the sets of Iconify, 379,454 drawings by hundreds of authors under a score of licences, each with its name.

Made from the npm package @iconify/json by `jaxgen data prepare icons`; resvg draws them on white. A record has its own
licence, author and source, GPL and non-commercial ones among them: `licences.allow` keeps those of the licences that
one wants. The caption is the icon's name in words.
"""

import json
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets.avatars import rasterise
from jaxgen.data.datasets.emoji64 import Archive, find_archive
from jaxgen.data.parallel import parallel_map
from jaxgen.data.recipe import Examples, Recipe, folder, load, prepare

ARCHIVE = Archive(
  vendor='iconify',
  package='@iconify/json@2.2.535',
  file='iconify-json-2.2.535.tgz',
  sha256='1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91',
  images='package/json',
)
_MAX_BYTES = 64 << 20  # size of one set's file
_TEST = 20  # one icon in this many
_SIDES = ('left', 'top', 'width', 'height')


class Options(NamedTuple):
  """Options of `jaxgen data prepare icons`.

  Attributes:
    size: height and width.
    number: about how many icons, the same share of each set; 0 for all.
  """

  size: int = 64
  number: int = 0

  @property
  def name(self) -> str:
    """The dataset's name: `icons`, with what differs from the default."""
    parts = ['icons'] + ([f'{self.size}px'] if self.size != Options().size else [])
    return '_'.join(parts + ([str(self.number)] if self.number else []))


DEFAULT = Options()


def icons(split: str = 'train', *, options: Options = DEFAULT, data_dir: str | pathlib.Path | None = None) -> Dataset:
  """Opens icons; `jaxgen data prepare icons` with the same options makes it."""
  return load(folder(recipe(options), data_dir), split, command='icons')


def prepare_icons(options: Options = DEFAULT, **how: Any) -> pathlib.Path:
  """Draws the dataset unless it is there already; returns its folder. The other arguments are those of `prepare`."""
  return prepare(recipe(options), **how)


def recipe(options: Options = DEFAULT) -> Recipe:
  """The recipe of icons with these options.

  Raises:
    ValueError: the size or the number is none.
  """
  if options.size < 8 or options.number < 0:
    raise ValueError(f'size {options.size} and number {options.number} of icons; want at least 8 and 0 (all)')
  return Recipe(
    name=options.name,
    version='1.0.0',
    about='379,454 icons of Iconify with names and licences of their own; downloads 104 MB from npm',
    license='each record has its own',
    image_shape=(options.size, options.size, 3),
    examples=lambda source: _examples(source, options),
    texts=('caption', 'licence', 'author', 'source'),
  )


class Icon(NamedTuple):
  """One icon as the package has it."""

  set: str
  name: str
  svg: str
  about: dict[str, str]  # licence, author, source


def _examples(source: pathlib.Path | None, options: Options) -> Examples:
  path = find_archive(ARCHIVE, source, kept='icons')
  return {'train': _split(path, options, test=False), 'test': _split(path, options, test=True)}


def _split(path: pathlib.Path, options: Options, *, test: bool) -> Iterator[Record]:
  wanted = (icon for number, icon in enumerate(read(path, options.number)) if (number % _TEST == 0) == test)
  for icon, image in parallel_map(lambda icon: (icon, _draw(icon, options.size)), wanted):
    if image is not None:
      yield {'image': image, 'caption': icon.name.replace('-', ' ').replace('_', ' '), **icon.about}


def _draw(icon: Icon, size: int) -> UInt8[np.ndarray, 'size size 3'] | None:
  """The picture; None where resvg cannot draw it."""
  try:
    return rasterise(icon.svg, size)
  except ValueError:
    return None


def read(path: pathlib.Path, number: int = 0) -> Iterator[Icon]:
  """The icons of the archive, set by set; about `number` of them, evenly spread, unless that is 0."""
  with tarfile.open(path) as tar:
    members = {member.name: member for member in tar if member.isfile() and member.size <= _MAX_BYTES}
    listed = json.loads(_bytes(tar, members['package/collections.json']))
    total = sum(about.get('total', 0) for about in listed.values())
    step = max(1, total // number) if number else 1
    count = 0
    for name in sorted(listed):
      if f'package/json/{name}.json' not in members:
        continue
      found = json.loads(_bytes(tar, members[f'package/json/{name}.json']))
      drawings = sorted(icon for icon, drawing in found['icons'].items() if not drawing.get('hidden'))
      yield from (_icon(name, icon, listed[name], found) for icon in drawings[-count % step :: step])
      count += len(drawings)


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
  file = tar.extractfile(member)
  assert file is not None
  return file.read()


def _icon(prefix: str, name: str, about: dict[str, Any], found: dict[str, Any]) -> Icon:
  licence, author = about.get('license', {}), about.get('author', {})
  origin = {
    'licence': licence.get('spdx') or licence.get('title', ''),
    'author': author.get('name', ''),
    'source': f'{about.get("name", prefix)} ({author.get("url", "")})',
  }
  drawing = found['icons'][name]
  box = {'left': 0, 'top': 0, 'width': 16, 'height': 16} | {side: found[side] for side in _SIDES if side in found}
  view = ' '.join(str(drawing.get(side, box[side])) for side in _SIDES)
  spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
  svg = f'<svg {spaces} viewBox="{view}">{drawing["body"]}</svg>'.replace('currentColor', '#000')
  return Icon(prefix, name, svg, origin)
