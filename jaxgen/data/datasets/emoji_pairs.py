"""emoji_pairs: 63,026 ordered pairs of emoji, before and after an edit, and an instruction in words.

Made by `jaxgen data prepare emoji_pairs` from the archives of emoji64, for InstructPix2Pix. The code points of an emoji
say what it shows, so two of one vendor make a pair where they differ in exactly one of

  skin tone      of one person, yellow among them, or of one of two people
  gender         person, man, woman
  hair           red, curly, white, none, or the emoji's own
  direction      facing right

and two of the same code points where they differ in the vendor's style. All emoji that differ in these alone are in
the same split. A record has `before`, `image`, `caption` (ways to say the instruction, one a line) and `vendor`.
"""

import functools
import itertools
import pathlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets.avatars_drawn import in_halves
from jaxgen.data.datasets.emoji32 import is_test
from jaxgen.data.datasets.emoji64 import ARCHIVES, TONES, emoji_list, find_archives, picture, pictures_of, read_archive
from jaxgen.data.parallel import parallel_map
from jaxgen.data.recipe import Examples, Recipe, Sized, folder, load, prepare

_TONES = {code.lower(): tone for code, tone in TONES.items()}
_HAIR = {'1f9b0': 'red', '1f9b1': 'curly', '1f9b3': 'white', '1f9b2': 'bald'}
_SIGNS = {'2640': 'woman', '2642': 'man'}
_PEOPLE = {'1f9d1': 'person', '1f468': 'man', '1f469': 'woman'}
# Emoji that differ in gender and have code points of their own: the neutral one first, '' where there is none.
_SETS = (('1fac5', '1f934', '1f478'), ('', '1f57a', '1f483'))
_RIGHT = '27a1'
_JOINER = '200d'
_STYLES = {'google': 'Noto Emoji', 'twitter': 'Twemoji', 'fluent': '3D Fluent Emoji'}


Options = functools.partial(Sized, 'emoji_pairs')  # Options(32) for pictures of 32 x 32
DEFAULT = Options()


class Shown(NamedTuple):
  """What the code points of an emoji say.

  Attributes:
    kind: the code points that are left.
    tones: a tone for each person that has one; () for yellow.
    gender: person, man or woman.
    hair: a word of _HAIR, or ''.
    right: whether it faces right.
  """

  kind: str
  tones: tuple[str, ...]
  gender: str
  hair: str
  right: bool


class Pair(NamedTuple):
  """Two emoji, (vendor, code) each, and what turns the first into the second, one instruction a line."""

  before: tuple[str, str]
  after: tuple[str, str]
  instruction: str


def emoji_pairs(
  split: str = 'train',
  *,
  options: Sized = DEFAULT,
  name: str | None = None,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens emoji_pairs; `jaxgen data prepare emoji_pairs` makes it.

  Args:
    split: train or test.
    options: those that it was prepared with.
    name: name of the prepared dataset in place of its options, such as 'emoji_pairs_32px'.
    data_dir: the folder of prepared datasets.
  """
  made = recipe(options)
  place = folder(made if name is None else made._replace(name=name), data_dir)
  return in_halves(load(place, split, command='emoji_pairs'), ('before', 'image'))


def prepare_emoji_pairs(options: Sized = DEFAULT, **how: Any) -> pathlib.Path:
  """Writes the dataset unless it is there already; returns its folder. The other arguments are those of `prepare`."""
  return prepare(recipe(options), **how)


def recipe(options: Sized = DEFAULT) -> Recipe:
  """The recipe of emoji_pairs with these options; the two pictures of a record lie side by side in one."""
  options.check()
  return Recipe(
    name=options.name,
    version='1.0.0',
    about=f'63,026 edits of emoji with instructions, {options.size}x{options.size}; downloads 150 MB from npm',
    license='Apache-2.0 (Noto Emoji), CC-BY-4.0 (Twemoji), MIT (Fluent Emoji)',
    image_shape=(options.size, 2 * options.size, 3),
    examples=lambda source: _examples(source, options),
    texts=('caption', 'vendor'),
  )


def _examples(source: pathlib.Path | None, options: Sized) -> Examples:
  archives = {archive.vendor: (archive, path) for archive, path in zip(ARCHIVES, find_archives(source), strict=True)}
  emoji = emoji_list(read_archive(archives['google'][1], 'package/emoji.json')['emoji.json'])
  files = {vendor: pictures_of(archive, path, emoji) for vendor, (archive, path) in archives.items()}
  found = pairs({vendor: list(codes) for vendor, codes in files.items()})
  return {split: _split(found, files, options.size, test=split == 'test') for split in ('train', 'test')}


def _split(found: Iterable[Pair], files: dict[str, dict[str, bytes]], size: int, *, test: bool) -> Iterator[Record]:
  wanted = [pair for pair in found if is_test(shown(pair.before[1]).kind) == test]
  used = sorted({emoji for pair in wanted for emoji in (pair.before, pair.after)})
  drawn = parallel_map(lambda emoji: picture(files[emoji[0]][emoji[1]], size=size), used)
  images = dict(zip(used, drawn, strict=True))
  for pair in wanted:
    before, after = images[pair.before], images[pair.after]
    if not np.array_equal(before, after):
      yield {
        'image': np.concatenate([before, after], axis=1),
        'caption': pair.instruction,
        'vendor': pair.after[0],
      }


def shown(code: str) -> Shown:
  """What the code points of an emoji say, as `emoji64.code_of` writes them."""
  points = code.split('-')
  tones = tuple(_TONES[point] for point in points if point in _TONES)
  parts = [
    '-'.join(part)
    for joins, part in itertools.groupby((p for p in points if p not in _TONES), lambda point: point == _JOINER)
    if not joins
  ]
  if not parts:  # a skin tone by itself
    return Shown(code, (), 'person', '', False)
  right = len(parts) > 1 and parts[-1] == _RIGHT
  parts = parts[:-1] if right else parts
  parts, gender = _gender(parts)
  hair = _HAIR.get(parts[-1], '') if len(parts) > 1 else ''
  parts = parts[:-1] if hair else parts
  return Shown('-'.join(parts), tones, gender, hair, right)


def _gender(parts: list[str]) -> tuple[list[str], str]:
  """The parts without what says the gender, and the gender."""
  if len(parts) > 1 and parts[-1] in _SIGNS:
    return parts[:-1], _SIGNS[parts[-1]]
  if parts[0] in _PEOPLE and sum(part in _PEOPLE for part in parts) == 1:
    return ['person', *parts[1:]], _PEOPLE[parts[0]]
  for set_ in _SETS:
    if parts[0] in set_:
      return [set_[1], *parts[1:]], ('person', 'man', 'woman')[set_.index(parts[0])]
  return parts, 'person'


def pairs(codes: dict[str, list[str]]) -> list[Pair]:
  """All pairs of the emoji that each vendor has, in an order that does not depend on that of the codes."""
  found: list[Pair] = []
  for vendor in sorted(codes):
    seen = {code: shown(code) for code in sorted(codes[vendor])}
    instructions: dict[str, Callable[[Shown, Shown], str]] = {
      'tones': _tones,
      'gender': lambda before, after: _genders(after),
      'hair': lambda before, after: _hairs(after),
      'right': lambda before, after: f'make it face {"right" if after.right else "left"}\nturn it around',
    }
    for differs, say in instructions.items():
      for before, after in _apart(seen, differs):
        instruction = say(seen[before], seen[after])
        if instruction:
          found.append(Pair((vendor, before), (vendor, after), instruction))
  for code in sorted(set().union(*codes.values())):
    for before, after in itertools.permutations([vendor for vendor in sorted(codes) if code in codes[vendor]], 2):
      style = _STYLES[after]
      found.append(Pair((before, code), (after, code), f'in the style of {style}\nmake it look like {style}'))
  return found


def _apart(seen: dict[str, Shown], field: str) -> Iterator[tuple[str, str]]:
  """Ordered pairs of codes that may differ in this field alone."""
  groups: dict[Shown, list[str]] = defaultdict(list)
  for code, it in seen.items():
    groups[it._replace(**cast(Any, {field: None}))].append(code)
  for group in groups.values():
    yield from itertools.permutations(group, 2)


def _tones(before: Shown, after: Shown) -> str:
  """Instructions for a skin tone; '' where the tones of two people differ, or only one of the two is of two."""
  if len(before.tones) <= 1 and len(after.tones) <= 1:
    tone = after.tones[0] if after.tones else 'yellow'
    return f'make the skin {tone}\nchange the skin tone to {tone}'
  changed = [i for i, pair in enumerate(zip(before.tones, after.tones, strict=False)) if pair[0] != pair[1]]
  if len(before.tones) != len(after.tones) or len(changed) != 1:
    return ''
  who = ('left', 'right')[changed[0]]
  return f'make the skin of the person on the {who} {after.tones[changed[0]]}'


def _genders(after: Shown) -> str:
  if after.gender == 'person':
    return 'make it neither a man nor a woman\nmake it a person of any gender'
  return f'make it a {after.gender}\nturn the person into a {after.gender}'


def _hairs(after: Shown) -> str:
  if after.hair == 'bald':
    return 'make the person bald\nremove the hair'
  if not after.hair:
    return 'give the person plain hair'
  return f'make the hair {after.hair}\ngive the person {after.hair} hair'
