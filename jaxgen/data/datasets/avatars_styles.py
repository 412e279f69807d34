"""The attributes that avatars of each style can show: the tables that `avatars` draws from and that captions read.

A style is one definition of the package dicebear-styles. Its parts (hair, mouth, ...) have variants with names of the
artist's own; a table here gives the variants that are distinct at 32x32 a word that is true of the picture. All
styles share one vocabulary: word i of attribute a is VOCABULARY[a][i], and -1 stands for an attribute that a style
lacks or that the picture hides (the hair below a cap).
"""

from jaxgen.data.datasets.avatars_creatures import CRITTERS, FUN_EMOJI, MOODS, PLANETS, SPROUTS, VOXEL_BOT
from jaxgen.data.datasets.avatars_parts import Style, Words
from jaxgen.data.datasets.avatars_people import AVATAAARS, BIG_SMILE, DYLAN, MICAH, PERSONAS, TOON_HEAD, VOXEL_ART

__all__ = ['ATTRIBUTES', 'CONTRASTS', 'DEFAULT', 'HIDES', 'STYLES', 'VOCABULARY', 'Style', 'Words', 'are_near']

# AVATAAARS is "free for personal and commercial use" without a public licence, so it has to be asked for.
DEFAULT = (
  VOXEL_ART,
  BIG_SMILE,
  TOON_HEAD,
  PERSONAS,
  MICAH,
  DYLAN,
  CRITTERS,
  SPROUTS,
  PLANETS,
  MOODS,
  VOXEL_BOT,
  FUN_EMOJI,
)
STYLES = {style.name: style for style in (*DEFAULT, AVATAAARS)}

# Where the attribute has one of the words, the others cannot be seen.
HIDES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
  ('hat', ('cap', 'beanie', 'bunny-ear hat', 'hijab', 'turban'), ('hair', 'hair_color')),
  ('hat', ('none',), ('hat_color',)),
  ('hair', ('bald',), ('hair_color',)),
  ('glasses', ('sunglasses',), ('eyes',)),
  ('accessory', ('face mask',), ('mouth', 'facial_hair')),
  ('top', ('none',), ('top_color',)),
  ('plant', ('cactus', 'palm tree', 'bush', 'succulent', 'seedling'), ('top_color',)),
)

# The first is chosen again while it has the word of one of the others, or a colour within NEAR of it: white hair on
# white is hard to see, and so is brown hair on dark skin.
CONTRASTS = (
  ('skin', ('hair_color',)),
  ('color', ('top_color',)),
  ('background', ('hair_color', 'clothes_color', 'hat_color', 'skin', 'color', 'top_color')),
)
NEAR = 50.0  # distance of two colours in RGB


def are_near(one: str, other: str) -> bool:
  """Whether two hex colours are hard to tell apart."""
  channels = [(int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
  return sum((a - b) ** 2 for a, b in channels) < NEAR**2


def _vocabulary() -> dict[str, tuple[str, ...]]:
  """The words of each attribute over all styles, 'none' first."""
  found: dict[str, dict[str, None]] = {}
  for style in STYLES.values():
    for attribute, word in style.base.items():
      found.setdefault(attribute, {})[word] = None
    for part in style.parts:
      for attribute, words in part.words.items():
        found.setdefault(attribute, {}).update(dict.fromkeys(words))
    for attribute, tint in style.tints.items():
      found.setdefault(attribute, {}).update(dict.fromkeys(tint.palette))
  return {'style': tuple(STYLES)} | {
    name: tuple(sorted(words, key=lambda w: w != 'none')) for name, words in found.items()
  }


VOCABULARY = _vocabulary()
ATTRIBUTES = tuple(VOCABULARY)
