"""avatars_segments: avatars beside the exact maps of their parts, for a control branch that reads segmentations.

Made by `jaxgen data prepare avatars_segments`, from the words and the drawings of avatars.py. Which part a pixel is of
is found by drawing the picture three times, part i in white where bit k of its number i is set and else in black:

  number(pixel) = sum_k 2^k [ pixel of drawing k is nearer to its lightest of the three than to its darkest ]     (1)

A pixel that no drawing changes is of no part with a color: an eye, a mouth, an outline. A record is `image`, `control`,
the map in the colors of PARTS, in [0, 1], and `attributes`.
"""

import pathlib
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets import avatars
from jaxgen.data.datasets.avatars import Choice, Options, draw, encode_words
from jaxgen.data.datasets.avatars_drawn import as_control, drawn_dataset, drawn_recipe, own_name
from jaxgen.data.datasets.avatars_styles import Style
from jaxgen.data.recipe import Recipe

DEFAULT = Options(size=32, number=10_000)
# What has a color of its own, by its attribute, and its color in a map; what has none is black.
PARTS = MappingProxyType(
  {
    'background': (64, 64, 64),
    'skin': (255, 160, 96),
    'hair_color': (128, 0, 255),
    'clothes_color': (0, 128, 255),
    'hat_color': (255, 0, 0),
    'color': (255, 255, 0),
    'top_color': (0, 255, 0),
  }
)
_LEAST = 64  # levels between a pixel's lightest and its darkest drawing


def avatars_segments(
  split: str = 'train',
  *,
  options: Options = DEFAULT,
  name: str | None = None,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens avatars_segments; the arguments are those of `avatars`."""
  made, halves = recipe(options), ('image', 'control')
  return as_control(drawn_dataset(made, split, kind='avatars_segments', name=name, data_dir=data_dir, halves=halves))


def prepare_avatars_segments(options: Options = DEFAULT, *, data_dir: Any = None, **how: Any) -> pathlib.Path:
  """Draws the dataset unless it is there already; returns its folder. The other arguments are those of `prepare`."""
  made = recipe(options, data_dir=data_dir)
  return avatars.prepare_drawn(made, options, picture_and_map, data_dir=data_dir, **how)


def recipe(options: Options = DEFAULT, *, data_dir: str | pathlib.Path | None = None) -> Recipe:
  """The recipe of avatars_segments with these options; a picture and its map lie side by side in one."""
  return drawn_recipe(
    own_name('avatars_segments', options, DEFAULT),
    options,
    picture_and_map,
    data_dir=data_dir,
    version='1.0.0',
    about=f'{options.number:,} avatars beside maps of their parts, {options.size}x{options.size}',
    image_shape=(options.size, 2 * options.size, 3),
  )


def picture_and_map(options: Options, split: str, number: int) -> Record:
  """The arrays of a record."""
  style, choice = avatars.record_choice(options, split, number)
  seed = f'{options.seed} {split} {number}'
  image = draw(style, choice, size=options.size, seed=seed)
  colors = np.array([(0, 0, 0), *PARTS.values()], np.uint8)[segments(style, choice, size=options.size, seed=seed)]
  return {'image': np.concatenate([image, colors], axis=1), 'attributes': encode_words(choice.words)}


def segments(style: Style, choice: Choice, *, size: int, seed: str) -> Int[np.ndarray, 'size size']:
  """Eq. 1: 1 + the number of the part in PARTS, 0 where there is none; the arguments are those of `avatars.draw`."""
  names = [name for name in PARTS if name in style.tints]
  drawings = []
  for bit in range(3):
    chosen = {
      color: '#ffffff' if (i + 1) >> bit & 1 else '#000000'
      for i, name in enumerate(names)
      for color in style.tints[name].colors
    }
    recolored = choice._replace(colors=choice.colors | chosen)
    drawings.append(draw(style, recolored, size=size, seed=seed).astype(np.int32).mean(axis=-1))
  return _numbers(np.stack(drawings), names)


def _numbers(drawings: np.ndarray, names: list[str]) -> Int[np.ndarray, 'size size']:
  darkest, lightest = drawings.min(axis=0), drawings.max(axis=0)
  bits = (drawings > (darkest + lightest) / 2) * np.array([1, 2, 4])[:, None, None]
  number = np.where(lightest - darkest >= _LEAST, bits.sum(axis=0), 0)
  order = np.zeros(8, np.int64)  # from a number here to that in PARTS
  order[1 : len(names) + 1] = [1 + list(PARTS).index(name) for name in names]
  return order[number]
