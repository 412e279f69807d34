"""openmoji: 4,495 emoji in color, each beside its line drawing, for a control branch that reads line art.

Made from the npm package openmoji by `jaxgen data prepare openmoji`, and drawn by resvg. Both drawings of an emoji have
the same outlines. A record has `image`, the color drawing on white; `control`, its lines in white on black, in [0, 1];
`caption`, `licence`, `author` and `source`. Emoji that differ in skin tone alone are in the same split.
"""

import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets.avatars import rasterise
from jaxgen.data.datasets.avatars_drawn import as_control, in_halves
from jaxgen.data.datasets.emoji32 import is_test
from jaxgen.data.datasets.emoji64 import Archive, find_archive, read_archive
from jaxgen.data.parallel import parallel_map
from jaxgen.data.recipe import Examples, Recipe, Sized, folder, load, prepare

ARCHIVE = Archive(
  vendor='openmoji',
  package='openmoji@17.0.0',
  file='openmoji-17.0.0.tgz',
  sha256='55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68',
  images='package/color/svg/',
)
_LINES = 'package/black/svg/'
_LICENCE = 'CC-BY-SA-4.0'


Options = functools.partial(Sized, 'openmoji')  # Options(32) for pictures of 32 x 32
DEFAULT = Options()


class Drawing(NamedTuple):
  """An emoji as the package has it: two SVGs and an entry of its list."""

  color: str
  lines: str
  about: dict[str, Any]


def openmoji(
  split: str = 'train',
  *,
  options: Sized = DEFAULT,
  name: str | None = None,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens openmoji; `jaxgen data prepare openmoji` makes it.

  Args:
    split: train or test.
    options: those that it was prepared with.
    name: name of the prepared dataset in place of its options, such as 'openmoji_32px'.
    data_dir: the folder of prepared datasets.
  """
  made = recipe(options)
  place = folder(made if name is None else made._replace(name=name), data_dir)
  return as_control(in_halves(load(place, split, command='openmoji'), ('image', 'control')))


def prepare_openmoji(options: Sized = DEFAULT, **how: Any) -> pathlib.Path:
  """Draws the dataset unless it is there already; returns its folder. The other arguments are those of `prepare`."""
  return prepare(recipe(options), **how)


def recipe(options: Sized = DEFAULT) -> Recipe:
  """The recipe of openmoji with these options; a picture and its lines lie side by side in one."""
  options.check()
  return Recipe(
    name=options.name,
    version='1.0.0',
    about=f'4,495 emoji beside their line drawings, {options.size}x{options.size}; downloads 4 MB from npm',
    license=_LICENCE,
    image_shape=(options.size, 2 * options.size, 3),
    examples=lambda source: _examples(source, options),
    texts=('caption', 'licence', 'author', 'source'),
  )


def _examples(source: pathlib.Path | None, options: Sized) -> Examples:
  path = find_archive(ARCHIVE, source, kept='openmoji')
  return {split: _split(path, options.size, test=split == 'test') for split in ('train', 'test')}


def _split(path: pathlib.Path, size: int, *, test: bool) -> Iterator[Record]:
  wanted = [drawing for drawing in drawings(path) if is_test(drawing.about['annotation'].partition(':')[0]) == test]
  for drawing, image in parallel_map(lambda drawing: (drawing, both(drawing, size)), wanted):
    about = drawing.about
    origin = {'licence': _LICENCE, 'author': about['openmoji_author'], 'source': 'OpenMoji (https://openmoji.org)'}
    yield {'image': image, 'caption': about['annotation'], **origin}


def drawings(path: pathlib.Path) -> Iterator[Drawing]:
  """The emoji of the archive that have both drawings, in the order of its list."""
  color, lines = (read_archive(path, prefix) for prefix in (ARCHIVE.images, _LINES))
  for about in json.loads(read_archive(path, 'package/data/openmoji.json')['openmoji.json']):
    file = f'{about["hexcode"]}.svg'
    if file in color and file in lines:
      yield Drawing(color[file].decode(), lines[file].decode(), about)


def both(drawing: Drawing, size: int) -> UInt8[np.ndarray, 'size width 3']:
  """The color drawing, and to the right of it the lines, white on black."""
  return np.concatenate([rasterise(drawing.color, size), 255 - rasterise(drawing.lines, size)], axis=1)
