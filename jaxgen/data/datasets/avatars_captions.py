"""Captions of avatars: a pure function from attributes to one of many true descriptions.

  caption(attributes, rng)    ->  'a smiling woman with long red hair and glasses, green shirt, on a blue background'

A caption leaves some attributes out, so that a model learns to choose what a prompt leaves open. Words are those of
`avatars_styles`; only 'man' and 'woman' are read from the drawing: a man where there is a beard or a moustache, a woman
where there is none and the hair or the dress is drawn as a woman's; half of them are 'person' all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from jaxgen.data.dataset import Record
from jaxgen.data.datasets.avatars import choose, decode_words, encode_words
from jaxgen.data.datasets.avatars_styles import STYLES, Words
from jaxgen.data.tokenizers.tokenizer import Tokenizer, encode
from jaxgen.data.tokenizers.words import vocabulary_of

LENGTH = 36  # words of the longest caption, with some to spare

# Expressions that may stand before the noun; the others only in WITH.
_ADJECTIVE = {
  'smile': 'smiling',
  'laugh': 'laughing',
  'grin': 'grinning',
  'frown': 'frowning',
}
# What follows 'with', by attribute and word; {c} is a colour and a space, or nothing.
_MOUTH = {
  'smile': 'a smile',
  'laugh': 'a laughing mouth',
  'grin': 'a toothy grin',
  'frown': 'a frown',
  'flat': 'a straight mouth',
  'open': 'an open mouth',
  'grimace': 'clenched teeth',
  'wavy': 'a wavy mouth',
  'zigzag': 'a zigzag mouth',
  'teeth': 'a few teeth',
  'grille': 'a grille for a mouth',
  'tongue': 'its tongue out',
  'kiss': 'a kissing mouth',
}
_EYES = {
  'open': 'open eyes',
  'happy': 'happy eyes',
  'closed': 'closed eyes',
  'star': 'star eyes',
  'heart': 'heart eyes',
  'winking': 'a winking eye',
  'sleepy': 'sleepy eyes',
  'angry': 'angry eyes',
  'squinting': 'squinting eyes',
  'one': 'one eye',
  'three': 'three eyes',
  'four': 'four eyes',
  'round': 'round eyes',
  'visor': 'a visor',
  'crying': 'crying eyes',
}
_HAIR = {
  'short': 'short {c}hair',
  'spiky': 'spiky {c}hair',
  'bowl cut': 'a {c}bowl cut',
  'mohawk': 'a {c}mohawk',
  'two buns': '{c}hair in two buns',
  'bob': 'a {c}bob',
  'long': 'long {c}hair',
  'afro': 'a {c}afro',
  'braids': '{c}braids',
  'bun': '{c}hair in a bun',
  'curly': 'curly {c}hair',
  'buzz cut': 'a {c}buzz cut',
  'wavy': 'wavy {c}hair',
  'pigtails': '{c}pigtails',
  'flat top': 'a {c}flat top',
  'long curly': 'long curly {c}hair',
  'shaggy': 'shaggy {c}hair',
}
_TOP = {
  'horns': '{c}horns',
  'spike': 'a {c}spike on its head',
  'antenna': 'an antenna',
  'antennae': 'two antennae',
  'round ears': 'round {c}ears',
  'crown': 'a {c}crown',
  'sprout': 'a {c}sprout on its head',
  'dish': 'a dish on its head',
  'siren': 'a siren on its head',
}
_CHEST = {'heart': 'a heart on its chest', 'screen': 'a screen on its chest', 'dial': 'a dial on its chest'} | {
  'buttons': 'buttons on its chest'
}
_WOMEN = ('two buns', 'bob', 'long', 'braids', 'bun', 'wavy', 'pigtails', 'long curly')


class Phrases(NamedTuple):
  """The pieces of a caption.

  Attributes:
    adjectives: before the noun, in order.
    noun: noun for the figure.
    with_: the things that it has.
    wearing: the clothes that it wears.
    behind: the background; '' for none.
  """

  adjectives: tuple[str, ...]
  noun: str
  with_: tuple[str, ...] = ()
  wearing: tuple[str, ...] = ()
  behind: str = ''


def caption(attributes: Sequence[int] | np.ndarray, rng: np.random.Generator, *, keep: float | None = None) -> str:
  """A description of an avatar, true of its picture.

  Args:
    attributes: the record's field, as in `avatars_styles.VOCABULARY`.
    rng: chooses the phrasing and what is left out.
    keep: probability that an attribute is named; drawn from [0.3, 1] when None.
  """
  words = decode_words(attributes)
  if keep is None:
    keep = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.3, 1.0))
  kept = {name: word for name, word in words.items() if name == 'style' or rng.random() < keep}
  return _written(_PHRASES[STYLES[words['style']].kind](kept, words, rng), rng)


def attributes_in(attributes: Sequence[int] | np.ndarray, text: str) -> Int32[np.ndarray, 'a']:
  """The attributes that a full caption (`keep=1`) names: -1 for 'none', and for a style that it does not name."""
  words = {name: word for name, word in decode_words(attributes).items() if word != 'none'}
  if not any(noun in text for noun in STYLES[words['style']].nouns):
    del words['style']
  return encode_words(words)


def prompted(tokenizer: Tokenizer) -> Callable[[Record, np.random.Generator], Record]:
  """A transform that adds the token ids of a full caption, and the attributes it names: 'text' and 'named'."""

  def transform(record: Record, rng: np.random.Generator) -> Record:
    text = caption(record['attributes'], rng, keep=1.0)
    return record | {'text': encode(tokenizer, text).ids, 'named': attributes_in(record['attributes'], text)}

  return transform


def expressions(attribute: str) -> dict[str, str]:
  """What follows 'with' for the words of an attribute; {} for one whose words need no other."""
  without_color = {word: _colored(pattern, None) for word, pattern in _HAIR.items()}
  return {'mouth': _MOUTH, 'eyes': _EYES, 'hair': without_color}.get(attribute, {})


def a(phrase: str) -> str:
  """The phrase with its article."""
  return f'{"an" if phrase[0] in "aeiou" else "a"} {phrase}'


def _colored(pattern: str, color: str | None) -> str:
  text = pattern.replace('{c}', f'{color} ' if color else '')
  return f'an {text[2:]}' if text.startswith('a ') and text[2] in 'aeiou' else text


def _written(phrases: Phrases, rng: np.random.Generator) -> str:
  """One of the ways to put the pieces together."""
  noun = ' '.join((*phrases.adjectives, phrases.noun))
  with_ = [str(phrase) for phrase in rng.permutation(np.array(phrases.with_, dtype=object))]
  if rng.random() < 0.2:  # tags
    behind = (f'{phrases.behind} background',) if phrases.behind else ()
    return ', '.join((noun, *with_, *phrases.wearing, *behind))
  subject = a(noun)
  if rng.random() < 0.15:
    subject = f'{_pick(rng, ("a picture of", "a drawing of", "a portrait of"))} {subject}'
  text = subject + (f' with {_listed(with_)}' if with_ else '')
  if phrases.wearing:
    text += f'{_pick(rng, (" wearing", ", wearing", " in"))} {_listed(phrases.wearing)}'
  if phrases.behind:
    background = _pick(rng, ('on a {} background', 'in front of a {} background', '{} background', 'on {}'))
    text += (
      f'{_pick(rng, (" ", ", ")) if background.startswith("on") else ", "}{_fix(background.format(phrases.behind))}'
    )
  return text


def _fix(text: str) -> str:
  """Sets the article before a vowel."""
  return text.replace(' a orange', ' an orange')


def _listed(items: Sequence[str]) -> str:
  """'x', 'x and y', 'x, y and z'."""
  return ' and '.join(part for part in (', '.join(items[:-1]), items[-1]) if part)


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
  return items[int(rng.integers(len(items)))]


def _expression(words: Words, rng: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The mouth, before the noun or after 'with'."""
  mouth = words.get('mouth')
  if mouth is None:
    return (), ()
  if mouth in _ADJECTIVE and rng.random() < 0.6:
    return (_ADJECTIVE[mouth],), ()
  return (), (_MOUTH[mouth],)


def _eyes(words: Words) -> tuple[str, ...]:
  return (_EYES[words['eyes']],) if 'eyes' in words else ()


def _tag(style: str, rng: np.random.Generator) -> tuple[str, ...]:
  """The style's word, mostly."""
  return (_pick(rng, STYLES[style].nouns),) if rng.random() < 0.85 else ()


def _person(words: Words, all_words: Words, rng: np.random.Generator) -> Phrases:
  adjectives, with_ = _expression(words, rng)
  hair, color = words.get('hair'), words.get('hair_color')
  if hair == 'bald':
    adjectives = (*adjectives, 'bald')
  elif hair is not None:
    with_ = (*with_, _colored(_HAIR[hair], color))
  elif color is not None:
    with_ = (*with_, f'{color} hair')
  if 'skin' in words:
    by_noun = rng.random() < 0.3
    adjectives = (*adjectives, f'{words["skin"]}-skinned') if by_noun else adjectives
    with_ = with_ if by_noun else (*with_, f'{words["skin"]} skin')
  for name in ('glasses', 'facial_hair', 'accessory'):
    word = words.get(name, 'none')
    if word != 'none':
      with_ = (*with_, word if word.endswith(('glasses', 'ears')) else a(word))
    elif name in words and rng.random() < 0.08 and name != 'accessory':
      with_ = (*with_, f'no {name.replace("_", " ")}')
  with_ += _eyes(words)
  adjectives = (*adjectives, *_tag(words['style'], rng))
  return Phrases(adjectives, _who(words, all_words, rng), with_, _clothes(words), words.get('background', ''))


def _who(words: Words, all_words: Words, rng: np.random.Generator) -> str:
  """'man' or 'woman' where the drawing says so, else 'person'."""
  facial = all_words.get('facial_hair', 'none') if all_words.get('accessory') != 'face mask' else None
  if rng.random() < 0.5:
    return 'person'
  if facial not in (None, 'none'):
    return 'man'
  is_drawn = all_words.get('hair') in _WOMEN or all_words.get('clothes') == 'dress'
  return 'woman' if is_drawn and facial == 'none' else 'person'


def _clothes(words: Words) -> tuple[str, ...]:
  color, clothes, found = words.get('clothes_color'), words.get('clothes'), ()
  if clothes is not None:
    found = (
      a(f'{color} {clothes}' if color else clothes) if clothes != 'overalls' else f'{color or ""} overalls'.strip(),
    )
  elif color is not None:
    found = (f'{color} clothes',)
  hat = words.get('hat', 'none')
  if hat != 'none':
    hat_color = words.get('hat_color')
    found = (*found, a(f'{hat_color} {hat}' if hat_color else hat))
  return found


def _thing(words: Words, rng: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Adjectives (expression, size or shape, colour) and expression of a creature."""
  adjectives, with_ = _expression(words, rng)
  shape = (words['body'],) if 'body' in words else ()
  color = (words['color'],) if 'color' in words else ()
  return (*adjectives, *shape, *color), with_


def _critter(words: Words, all_words: Words, rng: np.random.Generator) -> Phrases:
  noun = _pick(rng, STYLES['critters'].nouns)
  adjectives, with_ = _thing(words, rng)
  top = words.get('top', 'none')
  with_ += (_colored(_TOP[top], words.get('top_color')),) if top != 'none' else ()
  return Phrases(adjectives, noun, with_ + _eyes(words), (), words.get('background', ''))


def _robot(words: Words, all_words: Words, rng: np.random.Generator) -> Phrases:
  noun = _pick(rng, STYLES['voxel-bot'].nouns)
  adjectives, with_ = _thing(words, rng)
  top, chest = words.get('top', 'none'), words.get('chest', 'none')
  with_ += (_TOP[top],) if top != 'none' else ()
  with_ += (_CHEST[chest],) if chest != 'none' else ()
  return Phrases(adjectives, noun, with_ + _eyes(words), (), words.get('background', ''))


def _face(words: Words, all_words: Words, rng: np.random.Generator) -> Phrases:
  style = words['style']
  noun = 'face' if style == 'moods' else _pick(rng, ('emoji', 'emoji face'))
  adjectives, with_ = _thing(words, rng)
  for name in ('glasses', 'accessory'):
    word = words.get(name, 'none')
    with_ += (word if word.endswith('glasses') else a(word),) if word != 'none' else ()
  return Phrases(adjectives, noun, with_ + _eyes(words), (), words.get('background', ''))


def _plant(words: Words, all_words: Words, rng: np.random.Generator) -> Phrases:
  plant, color, shape = words.get('plant', 'plant'), words.get('color'), words.get('body')
  adjectives, with_ = _expression(words, rng)
  if plant in ('flower', 'tulip') and 'top_color' in words:
    plant = f'{words["top_color"]} {plant}'
  pot = ' '.join(word for word in (*adjectives, shape, color, 'pot') if word)
  return Phrases((), f'{plant} in {a(pot)}', with_ + _eyes(words), (), words.get('background', ''))


def _planet(words: Words, all_words: Words, rng: np.random.Generator) -> Phrases:
  surface, ring, moons = words.get('surface'), words.get('ring', 'none'), words.get('moons', 'none')
  adjectives = tuple(word for word in (surface, words.get('color')) if word)
  with_ = (f'a {ring} ring',) if ring != 'none' else ()
  with_ += ({'one': 'one moon', 'two': 'two moons'}[moons],) if moons != 'none' else ()
  if ring == 'none' and 'ring' in words and rng.random() < 0.2:
    with_ += ('no ring',)
  return Phrases(adjectives, 'planet', with_)


_PHRASES: dict[str, Callable[[Words, Words, np.random.Generator], Phrases]] = {
  'person': _person,
  'critter': _critter,
  'robot': _robot,
  'face': _face,
  'plant': _plant,
  'planet': _planet,
}


def describe(record: Mapping[str, Any], rng: np.random.Generator) -> str:
  """`caption` of a record of `avatars`, for `captions.tokenized`."""
  return caption(record['attributes'], rng)


def all_words() -> list[str]:
  """Every word that a caption can have, in alphabetical order: from many captions of all that the styles can show."""
  rng = np.random.default_rng(0)
  choices = (choose(STYLES[name], rng) for name in STYLES for _ in range(250))
  return vocabulary_of(caption(encode_words(found.words), rng, keep=0.9) for found in choices)
