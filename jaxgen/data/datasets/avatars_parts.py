"""Words, palettes and parts: what a style of `avatars` is described with."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

Words = dict[str, str]  # attribute -> word
Palette = dict[str, str]  # word -> hex colour

HAIR: Palette = {
  'black': '#26201f',
  'brown': '#6e4428',
  'blond': '#edcb6c',
  'red': '#bf2f26',
  'orange': '#ee8a2c',
  'white': '#f3f0ea',
  'grey': '#9a9da3',
  'pink': '#f48fbd',
  'blue': '#3f74dd',
  'green': '#3fa762',
  'purple': '#8450c8',
}
SKIN: Palette = {'light': '#ffdcc2', 'tan': '#dda577', 'brown': '#a0673f', 'dark': '#5f3b29'}
CLOTHES: Palette = {
  'red': '#d5323a',
  'orange': '#f28c2f',
  'yellow': '#f6cf3f',
  'green': '#3fa65a',
  'blue': '#3b70d9',
  'purple': '#8250c5',
  'pink': '#f37fb2',
  'black': '#2a2c33',
  'white': '#f6f6f6',
  'grey': '#8d949d',
}
LIGHT_BACKGROUND: Palette = {
  'white': '#ffffff',
  'blue': '#a3d0f7',
  'pink': '#fbc1da',
  'yellow': '#fbe798',
  'green': '#b3e2b6',
  'purple': '#d2c0f5',
  'orange': '#fdc793',
  'grey': '#cdd2d8',
}
DARK_BACKGROUND: Palette = {
  'blue': '#1d4ed8',
  'purple': '#6d28d9',
  'pink': '#be185d',
  'orange': '#c2410c',
  'green': '#047857',
  'black': '#1e293b',
}
BODY: Palette = {
  'red': '#f26d6d',
  'orange': '#fdb05e',
  'yellow': '#fbdb4c',
  'green': '#82e39b',
  'blue': '#72c6fb',
  'purple': '#b9a4fb',
  'pink': '#fbaad6',
  'white': '#f1f5f9',
}
PLANET: Palette = {
  'red': '#dd554b',
  'orange': '#e68d3c',
  'yellow': '#e3c23e',
  'green': '#68b75a',
  'blue': '#4a90e2',
  'purple': '#9c7be6',
  'pink': '#e27fb8',
  'white': '#dfe3ea',
}
ROBOT: Palette = {
  'red': '#f07a7a',
  'orange': '#f7a556',
  'yellow': '#fbd34a',
  'green': '#6fd887',
  'blue': '#6cb8f8',
  'purple': '#ac9af3',
  'white': '#eef1f4',
  'grey': '#98a2ad',
}
EMOJI: Palette = {
  'blue': '#2f9df0',
  'brown': '#b9793f',
  'yellow': '#fbc53a',
  'green': '#71cf62',
  'purple': '#a664e6',
  'pink': '#f58fc0',
  'red': '#ee5a4f',
  'white': '#f4f4f4',
}

Variant = str | None | tuple[str | None, ...]  # variant of one component (None: absent), or of several


class Part(NamedTuple):
  """Components that are chosen together.

  Attributes:
    components: their names in the style's definition.
    words: attribute -> word -> the variants that the word is true of. Every word of every attribute is equally likely.
    absent: probability that an optional part is left out; 0 where the words say which variant is none.
  """

  components: tuple[str, ...]
  words: Mapping[str, Mapping[str, tuple[Variant, ...]]]
  absent: float = 0.0


class Tint(NamedTuple):
  """A palette, and the colours of the definition that take the chosen one."""

  palette: Palette
  colors: tuple[str, ...]


class Style(NamedTuple):
  """What a style can show.

  Attributes:
    name: name of the definition in dicebear-styles.
    kind: which grammar its captions follow: person, critter, plant, planet, robot or face.
    nouns: words that name the style in a caption.
    bound: two attributes; a tenth of their pairs of words is held out from training.
    parts: the chosen parts.
    tints: attribute -> colours.
    base: words of attributes that no part sets.
    fixed: options of dicebear that are always the same.
  """

  name: str
  kind: str
  nouns: tuple[str, ...]
  bound: tuple[str, str]
  parts: tuple[Part, ...]
  tints: Mapping[str, Tint]
  base: Mapping[str, str] = MappingProxyType({})
  fixed: Mapping[str, object] = MappingProxyType({})


def part(component: str | tuple[str, ...], *, absent: float = 0.0, **words: Mapping[str, Variant | list]) -> Part:
  """A part whose words have one variant, or a list of them."""
  components = (component,) if isinstance(component, str) else component
  listed = {
    attribute: {word: tuple(found) if isinstance(found, list) else (found,) for word, found in variants.items()}
    for attribute, variants in words.items()
  }
  return Part(components, listed, absent)


STILL = {'animationVariant': ['none']}  # the styles that move
