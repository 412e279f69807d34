"""avatars_pairs: an avatar, the same with one attribute changed, and an instruction in words that says what to change.

Made by `jaxgen data prepare avatars_pairs`, from the words and the drawings of avatars.py: all that the change leaves
alone is the same to the pixel, and what an edit should have been is known. A record is

  before, image          the two pictures
  was, attributes        what each shows, in numbers of `avatars_styles.VOCABULARY`; -1 for what cannot be seen

Exactly one attribute that both show differs. Others may go out of sight (the eyes behind sunglasses), but none comes
into sight, because no instruction would say what it is. Record i of a split begins as record i of that split of
avatars, so the pictures of `train` are those of that dataset, and no picture of `train` has a held-out pair of words.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets import avatars
from jaxgen.data.datasets.avatars import Choice, Options, bound_pair, decode_words, draw, encode_words, held_out
from jaxgen.data.datasets.avatars_captions import a, expressions
from jaxgen.data.datasets.avatars_drawn import drawn_dataset, drawn_recipe, own_name
from jaxgen.data.datasets.avatars_styles import ATTRIBUTES, CONTRASTS, HIDES, STYLES, Style, Words, are_near
from jaxgen.data.recipe import Recipe

DEFAULT = Options(size=32, number=10_000)
_TRIES = 200


def avatars_pairs(
  split: str = 'train',
  *,
  options: Options = DEFAULT,
  name: str | None = None,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens avatars_pairs; `jaxgen data prepare avatars_pairs` with the same options makes it.

  Args:
    split: train, test or seen.
    options: options of the drawing.
    name: name of the prepared dataset in place of its options, such as 'avatars_pairs_64px'.
    data_dir: the folder of prepared datasets.
  """
  made, halves = recipe(options), ('before', 'image')
  return drawn_dataset(made, split, kind='avatars_pairs', name=name, data_dir=data_dir, halves=halves)


def prepare_avatars_pairs(options: Options = DEFAULT, *, data_dir: Any = None, **how: Any) -> pathlib.Path:
  """Draws the dataset unless it is there already; returns its folder. The other arguments are those of `prepare`."""
  made = recipe(options, data_dir=data_dir)
  return avatars.prepare_drawn(made, options, pair, data_dir=data_dir, **how)


def recipe(options: Options = DEFAULT, *, data_dir: str | pathlib.Path | None = None) -> Recipe:
  """The recipe of avatars_pairs with these options; the two pictures of a record lie side by side in one."""
  return drawn_recipe(
    own_name('avatars_pairs', options, DEFAULT),
    options,
    pair,
    data_dir=data_dir,
    version='1.0.0',
    about=f'{options.number:,} pairs of avatars, {options.size}x{options.size}, one attribute changed, instructions',
    image_shape=(options.size, 2 * options.size, 3),
    integers={'attributes': (len(ATTRIBUTES),), 'was': (len(ATTRIBUTES),)},
  )


def pair(options: Options, split: str, number: int) -> Record:
  """The arrays of a record."""
  style, before = avatars.record_choice(options, split, number)
  rng = np.random.default_rng([options.seed, avatars.SPLITS.index(split), number, 1])
  after = changed(style, before, rng, held=split == 'train' and options.hold_out)
  seed = f'{options.seed} {split} {number}'
  images = [draw(style, choice, size=options.size, seed=seed) for choice in (before, after)]
  return {
    'image': np.concatenate(images, axis=1),
    'attributes': encode_words(after.words),
    'was': encode_words(before.words),
  }


def changed(style: Style, before: Choice, rng: np.random.Generator, *, held: bool = False) -> Choice:
  """The choice with one attribute changed that both pictures show.

  Args:
    style: its style.
    before: the choice.
    rng: chooses the attribute and its new word.
    held: leave out changes to a pair of words that is held out of training.

  Raises:
    ValueError: there is none, which no style of avatars has been seen to do.
  """
  names = sorted({name for part in style.parts for name in part.words} | set(style.tints))
  for _ in range(_TRIES):
    name = names[int(rng.integers(len(names)))]
    after = _with_tint(style, before, name, rng) if name in style.tints else _with_part(style, before, name, rng)
    both = [other for other in before.words if after.words.get(other, before.words[other]) != before.words[other]]
    appears = after.words.keys() - before.words.keys()
    kept_out = held and held_out(style, bound_pair(style, after.words))
    if both == [name] and not appears and not kept_out and contrasts(style, after.words):
      return after
  raise ValueError(f'no attribute of this {style.name} can be changed alone: {before.words}')


def _with_tint(style: Style, before: Choice, name: str, rng: np.random.Generator) -> Choice:
  tint = style.tints[name]
  words = list(tint.palette)
  word = words[int(rng.integers(len(words)))]
  colors = before.colors | dict.fromkeys(tint.colors, tint.palette[word])
  seen = {name: word} if name in before.words else {}
  return Choice(before.words | seen, before.variants, colors)


def _with_part(style: Style, before: Choice, name: str, rng: np.random.Generator) -> Choice:
  """Another variant of the part that has the attribute, or none of them."""
  part = next(part for part in style.parts if name in part.words)
  ours = {attribute: style.base[attribute] for attribute in part.words if attribute in style.base}
  rest = {attribute: word for attribute, word in before.words.items() if attribute not in part.words}
  options = [(name, word) for word in part.words[name]] + ([('', '')] if part.absent else [])
  attribute, word = options[int(rng.integers(len(options)))]
  variants: dict[str, str | None] = dict.fromkeys(part.components)
  if attribute:
    found = part.words[attribute][word]
    variant = found[int(rng.integers(len(found)))]
    variants = dict(zip(part.components, variant if isinstance(variant, tuple) else (variant,), strict=True))
  words = rest | ours | ({attribute: word} if attribute else {})
  return Choice(visible(words), before.variants | variants, before.colors)


def visible(words: Words) -> Words:
  """The words without those of attributes that others hide."""
  hidden = {name for attribute, found, names in HIDES if words.get(attribute) in found for name in names}
  return {name: word for name, word in words.items() if name not in hidden}


def contrasts(style: Style, words: Words) -> bool:
  """Whether colours are distinct, as in avatars."""
  pairs = [
    (style.tints[one].palette[words[one]], style.tints[other].palette[words[other]], words[one] == words[other])
    for one, others in CONTRASTS
    for other in others
    if one in words and other in words and one in style.tints and other in style.tints
  ]
  return not any(same or are_near(*colors) for *colors, same in pairs)


# --- instructions

# Of colours: what has the colour.
_COLORED = {
  'hair_color': 'hair',
  'skin': 'skin',
  'clothes_color': 'clothes',
  'hat_color': 'hat',
  'background': 'background',
  'top_color': 'top',
}
# Of things that may be absent: the noun that a word is, or the words themselves.
_THINGS = ('glasses', 'facial_hair', 'accessory', 'hat', 'top', 'chest', 'ring', 'moons')


def difference(was: np.ndarray, attributes: np.ndarray) -> int:
  """The number of the attribute that both show and that differs.

  Raises:
    ValueError: none differs, or several do.
  """
  both = np.flatnonzero((was >= 0) & (attributes >= 0) & (was != attributes))
  if len(both) != 1:
    raise ValueError(f'a pair has {len(both)} attributes that differ; wanted one that both pictures show')
  return int(both[0])


def instruction(record: Mapping[str, Any], rng: np.random.Generator) -> str:
  """One of the ways to say what changes, for `captions.tokenized`."""
  name = ATTRIBUTES[difference(record['was'], record['attributes'])]
  old, new = (decode_words(record[field])[name] for field in ('was', 'attributes'))
  kind = STYLES[decode_words(record['attributes'])['style']].kind
  ways = _ways(name, old, new, kind)
  return ways[int(rng.integers(len(ways)))]


def _ways(name: str, old: str, new: str, kind: str) -> list[str]:
  if name in _COLORED:
    thing = _COLORED[name]
    return [f'make the {thing} {new}', f'change the {thing} to {new}', f'change the color of the {thing} to {new}']
  if name in _THINGS:
    return _things(name, old, new)
  if name == 'color':
    thing = {'plant': 'the pot', 'planet': 'the planet', 'robot': 'the robot'}.get(kind, 'it')
    return [f'make {thing} {new}', f'change its color to {new}' if thing == 'it' else f'change {thing} to {new}']
  if name in ('body', 'surface'):
    return [f'make it {new}', f'change its {"shape" if name == "body" else name} to {new}']
  if name == 'plant':
    return [f'change the plant to {a(new)}', f'make it {a(new)}']
  if name == 'hair' and new == 'bald':
    return ['make it bald', 'remove the hair']
  if name == 'clothes':
    phrase = new if new == 'overalls' else a(new)
    return [f'put on {phrase}', f'change the clothes to {phrase}']
  phrase = expressions(name)[new]
  return [f'give it {phrase}', f'change the {name} to {phrase}']


def _things(name: str, old: str, new: str) -> list[str]:
  before, after = (_thing(name, word) for word in (old, new))
  if new == 'none':
    return [f'remove the {before}', f'take away the {before}']
  plural = name == 'moons' or new in ('glasses', 'sunglasses', 'cat ears', 'round ears', 'horns', 'antennae', 'buttons')
  phrase = after if plural else a(after)
  if old == 'none':
    return [f'add {phrase}', f'give it {phrase}']
  return [f'change the {before} to {phrase}', f'replace the {before} with {phrase}']


def _thing(name: str, word: str) -> str:
  match name:
    case 'ring':
      return 'ring' if word == 'none' else f'{word} ring'
    case 'moons':
      return {'none': 'moons', 'one': 'one moon', 'two': 'two moons'}[word]
    case 'chest':
      return f'{word} on its chest'
  return word
