"""avatars_subject: ten pictures of one person, in several moods and before several backgrounds.

Made by `jaxgen data prepare avatars_subject`, for DreamBooth and textual inversion: what is to be learned is known, so
that a classifier can say whether samples show it. The person is one of `test` of avatars, whose pair of words (hair and
its color) is in no training picture. Another `--seed` is another person.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets import avatars
from jaxgen.data.datasets.avatars import Choice, Options, choose, draw, encode_words
from jaxgen.data.datasets.avatars_drawn import drawn_dataset, drawn_recipe
from jaxgen.data.datasets.avatars_pairs import contrasts
from jaxgen.data.datasets.avatars_styles import Style
from jaxgen.data.recipe import Recipe

DEFAULT = Options(number=10)
FREE = ('background', 'mouth', 'eyes')  # attributes that differ between the pictures


def avatars_subject(
  split: str = 'train',
  *,
  options: Options = DEFAULT,
  name: str | None = None,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens avatars_subject; the arguments are those of `avatars`."""
  return drawn_dataset(recipe(options), split, kind='avatars_subject', name=name, data_dir=data_dir)


def prepare_avatars_subject(options: Options = DEFAULT, *, data_dir: Any = None, **how: Any) -> pathlib.Path:
  """Draws the dataset unless it is there already; returns its folder. The other arguments are those of `prepare`."""
  made = recipe(options, data_dir=data_dir)
  return avatars.prepare_drawn(made, options, picture, data_dir=data_dir, **how)


def recipe(options: Options = DEFAULT, *, data_dir: str | pathlib.Path | None = None) -> Recipe:
  """The recipe of avatars_subject with these options."""
  name = options.name.replace('avatars', 'avatars_subject', 1).replace(f'_{DEFAULT.number}', '', 1)
  about = f'{options.number} pictures of one person, {options.size}x{options.size}'
  return drawn_recipe(name, options, picture, data_dir=data_dir, about=about)


def person(options: Options) -> tuple[Style, Choice]:
  """The person, of a style that draws people."""
  of_test = options._replace(styles=Options().styles, seed=0)
  number = options.seed * (len(of_test.styles) + 1)
  while True:
    style, choice = avatars.record_choice(of_test, 'test', number)
    if style.kind == 'person' and {'mouth', 'hair_color'} <= choice.words.keys():
      return style, choice
    number += 1


def picture(options: Options, split: str, number: int) -> Record:
  """The arrays of a record."""
  style, subject = person(options)
  rng = np.random.default_rng([options.seed, avatars.SPLITS.index(split), number, 2])
  while True:
    shown = in_another_mood(style, subject, choose(style, rng))
    if contrasts(style, shown.words):
      break
  image = draw(style, shown, size=options.size, seed=f'{options.seed}')
  return {'image': image, 'attributes': encode_words(shown.words)}


def in_another_mood(style: Style, subject: Choice, other: Choice) -> Choice:
  """The subject with what is FREE of another picture of its style."""
  parts = [part for part in style.parts if set(part.words) <= set(FREE)]
  tints = [tint for name, tint in style.tints.items() if name in FREE]

  def mixed(mine: Mapping[str, Any], theirs: Mapping[str, Any], free: set[str]) -> dict[str, Any]:
    return {name: theirs[name] if name in free and name in theirs else value for name, value in mine.items()}

  names = {name for part in parts for name in part.words} | (set(style.tints) & set(FREE))
  return Choice(
    mixed(subject.words, other.words, names),
    mixed(subject.variants, other.variants, {component for part in parts for component in part.components}),
    mixed(subject.colors, other.colors, {color for tint in tints for color in tint.colors}),
  )
