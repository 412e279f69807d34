"""emoji32: 1,250 Noto Emoji at 32 x 32 with class and caption, a part of the package.

Faces, animals, food, places, activities, objects and symbols on white; no people and no flags. One image for each
caption. Noto Emoji is Google's, under the Apache License 2.0: NOTICE.noto_emoji and LICENSE.noto_emoji are beside this
file.
"""

import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.recipe import Examples, Recipe, folder, load, prepare

FILE = pathlib.Path(__file__).parent / 'noto_emoji32.npz'
CLASSES = (
  'Activities',
  'Animals & Nature',
  'Food & Drink',
  'Objects',
  'Smileys & Emotion',
  'Symbols',
  'Travel & Places',
)


def emoji32(split: str = 'train', *, data_dir: str | pathlib.Path | None = None) -> Dataset:
  """Opens emoji32, preparing it first (a second) where that has not been done."""
  prepare(RECIPE, data_dir=data_dir)
  return load(folder(RECIPE, data_dir), split)


def is_test(base: str) -> bool:
  """Whether an emoji belongs to the test split, a tenth, by the caption of its base (no skin tone)."""
  return hashlib.sha256(base.encode()).digest()[0] < 26


def examples(source: pathlib.Path | None) -> Examples:
  if source is not None:
    raise ValueError(f'emoji32 is in the package and needs no --source; got {source}')
  with np.load(FILE, allow_pickle=False) as file:
    arrays = {name: file[name] for name in ('images', 'labels', 'captions', 'classes')}
  in_test = np.array([is_test(str(caption)) for caption in arrays['captions']])
  return {'train': _split(arrays, ~in_test), 'test': _split(arrays, in_test)}


def _split(arrays: dict[str, np.ndarray], chosen: np.ndarray) -> Iterator[Record]:
  for i in np.flatnonzero(chosen):
    label = CLASSES.index(str(arrays['classes'][arrays['labels'][i]]))
    yield {'image': arrays['images'][i], 'label': label, 'caption': str(arrays['captions'][i])}


RECIPE = Recipe(
  name='emoji32',
  version='1.0.0',
  about='1,250 Noto Emoji, 32x32 RGB, 7 classes, captions; in the package, prepared at first use',
  license='Apache-2.0',
  image_shape=(32, 32, 3),
  examples=examples,
  class_names=CLASSES,
  texts=('caption',),
)
