"""The styles of `avatars` that draw monsters, plants, planets, faces and robots."""

from jaxgen.data.datasets.avatars_parts import (
  BODY,
  DARK_BACKGROUND,
  EMOJI,
  LIGHT_BACKGROUND,
  PLANET,
  ROBOT,
  STILL,
  Style,
  Tint,
  part,
)

_CREATURE_EYES = {
  'open': ['round', 'bigPupils'],
  'happy': 'happy',
  'closed': 'closedLine',
  'winking': 'wink',
  'sleepy': 'sleepy',
  'angry': 'angry',
}
_CRITTER_EYES = _CREATURE_EYES | {'one': 'mono', 'three': ['trio', 'threeRow'], 'four': 'four', 'squinting': 'squint'}

CRITTERS = Style(
  name='critters',
  kind='critter',
  nouns=('monster', 'critter'),
  bound=('body', 'color'),
  parts=(
    part(
      'body',
      body={
        'round': 'dome',
        'square': 'block',
        'tall': 'tower',
        'wide': 'squat',
        'bell-shaped': 'bell',
        'lumpy': 'blob',
        'stepped': 'steps',
      },
    ),
    part(
      'top',
      top={
        'horns': ['horns', 'hornsIn'],
        'spike': 'spike',
        'antenna': 'antenna',
        'antennae': 'antennae',
        'round ears': 'earsRound',
        'crown': 'crown',
        'sprout': 'sprout',
      },
      absent=0.15,
    ),
    part('eyes', eyes=_CRITTER_EYES),
    part(
      'mouth',
      mouth={
        'smile': 'smile',
        'laugh': ['laugh', 'grin'],
        'teeth': 'teeth',
        'open': ['ooh', 'open'],
        'flat': 'line',
        'zigzag': 'zigzag',
        'frown': 'frown',
      },
    ),
  ),
  tints={
    'color': Tint(BODY, ('body',)),
    'top_color': Tint(BODY, ('accent',)),
    'background': Tint(DARK_BACKGROUND, ('background',)),
  },
  base={'top': 'none'},
  fixed=STILL | {'patternProbability': 0, 'cheeksProbability': 0},
)

SPROUTS = Style(
  name='sprouts',
  kind='plant',
  nouns=('plant',),
  bound=('plant', 'color'),
  parts=(
    part(
      'plant',
      plant={
        'cactus': 'cactus',
        'flower': 'flower',
        'tulip': 'tulip',
        'palm tree': 'palm',
        'bush': 'bush',
        'succulent': 'succulent',
        'seedling': 'sprout',
      },
    ),
    part('pot', body={'square': 'cylinder', 'round': 'round'}),
    part('eyes', eyes=_CREATURE_EYES),
    part('mouth', mouth={'smile': 'smile', 'laugh': 'grin', 'open': ['ooh', 'open'], 'flat': 'line', 'frown': 'frown'}),
  ),
  tints={
    'color': Tint(BODY, ('pot',)),
    'top_color': Tint({word: BODY[word] for word in ('red', 'yellow', 'purple', 'pink', 'white')}, ('bloom',)),
    'background': Tint({word: DARK_BACKGROUND[word] for word in DARK_BACKGROUND if word != 'green'}, ('background',)),
  },
  fixed=STILL | {'patternProbability': 0, 'cheeksProbability': 0, 'plantColor': ['#22c55e', '#34d399']},
)

PLANETS = Style(
  name='planets',
  kind='planet',
  nouns=('planet',),
  bound=('surface', 'color'),
  parts=(
    part('surface', surface={'striped': 'banded', 'cratered': 'cratered', 'earth-like': 'terra'}, absent=0.25),
    part('ring', ring={'thin': 'thin', 'thick': 'bold'}, absent=0.4),
    part('moons', moons={'one': 'one', 'two': 'two'}, absent=0.34),
  ),
  tints={'color': Tint(PLANET, ('planet',))},
  base={'surface': 'plain', 'ring': 'none', 'moons': 'none'},
  fixed=STILL,
)

MOODS = Style(
  name='moods',
  kind='face',
  nouns=('face',),
  bound=('body', 'color'),
  parts=(
    part('face', body={'round': 'circle', 'square': 'squircle', 'oval': 'wide', 'blob-shaped': ['blob', 'bean']}),
    part(
      'eyes',
      eyes={
        'open': ['pupils', 'bigPupils', 'sparkle'],
        'happy': 'happy',
        'closed': 'closed',
        'winking': 'wink',
        'squinting': 'squint',
        'sleepy': ['sleepy', 'calm'],
        'angry': 'angry',
      },
    ),
    part(
      'mouth',
      mouth={
        'smile': ['smile', 'wide'],
        'laugh': ['bigSmile', 'laugh', 'smileOpen'],
        'open': ['open', 'gasp'],
        'flat': 'line',
        'frown': 'frown',
        'wavy': 'wavy',
        'teeth': ['teeth', 'grin'],
      },
    ),
  ),
  tints={'color': Tint(BODY, ('face',)), 'background': Tint(DARK_BACKGROUND, ('background',))},
  fixed=STILL | {'cheeksProbability': 0},
)

VOXEL_BOT = Style(
  name='voxel-bot',
  kind='robot',
  nouns=('robot', 'voxel robot'),
  bound=('chest', 'color'),
  parts=(
    part('top', top={'antenna': 'antenna', 'antennae': 'twin', 'dish': 'dish', 'siren': 'siren'}, absent=0.2),
    part('eyes', eyes={'round': 'round', 'visor': 'visor', 'one': 'cyclops', 'happy': 'happy'}),
    part('mouth', mouth={'smile': 'smile', 'zigzag': 'zigzag', 'grille': ['grill', 'speaker'], 'flat': 'line'}),
    part('chest', chest={'heart': 'heart', 'screen': 'screen', 'dial': 'dial', 'buttons': 'buttons'}, absent=0.2),
  ),
  tints={'color': Tint(ROBOT, ('body',)), 'background': Tint(LIGHT_BACKGROUND, ('background',))},
  base={'top': 'none', 'chest': 'none'},
  fixed=STILL | {'screenColor': ['#161a21'], 'glowColor': ['#3bd5e9'], 'accentColor': ['#343a40']},
)

FUN_EMOJI = Style(
  name='fun-emoji',
  kind='face',
  nouns=('emoji',),
  bound=('eyes', 'color'),
  parts=(
    part(
      'eyes',
      eyes={
        'open': 'plain',
        'happy': 'closed',
        'closed': 'closed2',
        'crying': 'crying',
        'heart': 'love',
        'star': 'stars',
        'winking': ['wink', 'wink2'],
      },
      glasses={'glasses': 'glasses', 'sunglasses': 'shades'},
    ),
    part(
      'mouth',
      mouth={
        'smile': ['lilSmile', 'wideSmile'],
        'laugh': 'smileLol',
        'grin': 'smileTeeth',
        'flat': 'plain',
        'frown': 'sad',
        'open': 'shout',
        'tongue': 'tongueOut',
        'kiss': 'kissHeart',
      },
      accessory={'face mask': 'faceMask', 'thermometer': 'sick'},
    ),
  ),
  tints={'color': Tint(EMOJI, ('background',))},
  base={'glasses': 'none', 'accessory': 'none'},
)
