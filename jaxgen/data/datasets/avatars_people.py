"""The styles of `avatars` that draw people."""

from jaxgen.data.datasets.avatars_parts import CLOTHES, HAIR, LIGHT_BACKGROUND, SKIN, STILL, Style, Tint, part

VOXEL_ART = Style(
  name='voxel-art',
  kind='person',
  nouns=('voxel',),
  bound=('hair', 'hair_color'),
  parts=(
    part(
      'top',
      hair={
        'bald': None,
        'short': 'short',
        'spiky': 'spiky',
        'bowl cut': 'bowl',
        'mohawk': 'mohawk',
        'two buns': 'buns',
        'bob': 'bob',
        'long': 'longStraight',
        'afro': 'afro',
      },
      hat={'cap': 'cap', 'beanie': 'beanie', 'bunny-ear hat': 'bunnyEars'},
    ),
    part('mouth', mouth={'smile': 'smile', 'laugh': 'laugh', 'flat': 'flat', 'open': 'ooh', 'grin': 'grin'}),
    part('eyes', eyes={'open': ['open', 'wide'], 'happy': 'happy', 'closed': 'closed', 'star': 'star'}),
    part('glasses', glasses={'glasses': ['round', 'square'], 'sunglasses': 'shades'}, absent=0.5),
    part('beard', facial_hair={'beard': 'full'}, absent=0.7),
    part(
      'outfit',
      clothes={'shirt': 'plain', 'striped shirt': 'stripes', 'hoodie': 'hoodie', 'coat': 'coat', 'dress': 'dress'},
    ),
  ),
  tints={
    'hair_color': Tint(HAIR, ('hair',)),
    'hat_color': Tint(CLOTHES, ('hat',)),
    'skin': Tint(SKIN, ('skin',)),
    'clothes_color': Tint(CLOTHES, ('shirt', 'jacket')),
    'background': Tint(LIGHT_BACKGROUND, ('background',)),
  },
  base={'hat': 'none', 'glasses': 'none', 'facial_hair': 'none'},
  fixed=STILL | {'cheeksProbability': 0, 'pantsColor': ['#3b4a63']},
)

BIG_SMILE = Style(
  name='big-smile',
  kind='person',
  nouns=('cartoon',),
  bound=('hair', 'hair_color'),
  parts=(
    part(
      'hair',
      hair={
        'bob': 'bangs',
        'braids': 'braids',
        'bun': 'bunHair',
        'curly': 'curlyShortHair',
        'mohawk': 'mohawk',
        'buzz cut': 'shavedHead',
        'short': 'shortHair',
        'long': 'straightHair',
        'wavy': 'wavyBob',
      },
    ),
    part(
      'accessories',
      glasses={'glasses': 'glasses', 'sunglasses': 'sunglasses'},
      facial_hair={'moustache': 'mustache'},
      accessory={
        'face mask': 'faceMask',
        'clown nose': 'clownNose',
        'tiara': 'sailormoonCrown',
        'sleep mask': 'sleepMask',
        'cat ears': 'catEars',
      },
      absent=0.3,
    ),
    part(
      'mouth',
      mouth={'smile': 'kawaii', 'grin': 'teethSmile', 'laugh': 'openedSmile', 'flat': 'unimpressed', 'open': 'openSad'},
    ),
  ),
  tints={
    'hair_color': Tint(HAIR, ('hair',)),
    'skin': Tint(SKIN, ('skin',)),
    'background': Tint(LIGHT_BACKGROUND, ('background',)),
  },
  base={'glasses': 'none', 'facial_hair': 'none', 'accessory': 'none'},
  fixed={'eyesVariant': ['normal', 'cheery']},
)

TOON_HEAD = Style(
  name='toon-head',
  kind='person',
  nouns=('toon',),
  bound=('hair', 'hair_color'),
  parts=(
    part(
      ('hair', 'rearHair'),
      hair={
        'bald': (None, None),
        'bun': ('bun', None),
        'short': ('sideComed', None),
        'spiky': ('spiky', None),
        'long': [('sideComed', 'longStraight'), ('sideComed', 'longWavy')],
        'bob': [('sideComed', 'neckHigh'), ('sideComed', 'shoulderHigh')],
      },
    ),
    part('beard', facial_hair={'beard': ['fullBeard', 'longBeard'], 'moustache': 'moustacheTwirl'}, absent=0.6),
    part('mouth', mouth={'smile': 'smile', 'laugh': 'laugh', 'open': 'agape', 'grimace': 'angry'}),
    part('eyes', eyes={'open': ['happy', 'wide'], 'closed': 'bow'}),
    part('clothes', clothes={'tank top': 'dress', 't-shirt': 'tShirt', 'turtleneck': 'turtleNeck'}),
  ),
  tints={
    'hair_color': Tint(HAIR, ('hair',)),
    'skin': Tint(SKIN, ('skin',)),
    'clothes_color': Tint(CLOTHES, ('clothes',)),
    'background': Tint(LIGHT_BACKGROUND, ('background',)),
  },
  base={'facial_hair': 'none'},
)

PERSONAS = Style(
  name='personas',
  kind='person',
  nouns=('flat',),
  bound=('hair', 'hair_color'),
  parts=(
    part(
      'hair',
      hair={
        'bald': 'bald',
        'bob': ['bobCut', 'bobBangs'],
        'afro': 'curly',
        'long': 'extraLong',
        'mohawk': 'mohawk',
        'pigtails': 'pigtails',
        'short': 'shortCombover',
        'bun': 'straightBun',
      },
    ),
    part(
      'eyes',
      eyes={'open': 'open', 'happy': 'happy', 'closed': 'sleep'},
      glasses={'glasses': 'glasses', 'sunglasses': 'sunglasses'},
    ),
    part('facialHair', facial_hair={'beard': 'beardMustache', 'moustache': 'walrus'}, absent=0.7),
    part('mouth', mouth={'smile': 'smile', 'grin': 'bigSmile', 'frown': 'frown', 'open': 'surprise'}),
    part('clothes', clothes={'shirt': ['rounded', 'squared'], 'checked shirt': 'checkered'}),
  ),
  tints={
    'hair_color': Tint(HAIR, ('hair', 'facialHair')),
    'skin': Tint({'light': '#ffc9a3', 'tan': '#cf7f42', 'brown': '#75381a'}, ('skin',)),  # the face is half white
    'clothes_color': Tint(CLOTHES, ('clothing',)),
    'background': Tint(LIGHT_BACKGROUND, ('background',)),
  },
  base={'glasses': 'none', 'facial_hair': 'none'},
  fixed={'noseVariant': ['mediumRound', 'smallRound']},
)

MICAH = Style(
  name='micah',
  kind='person',
  nouns=('hand-drawn',),
  bound=('hair', 'hair_color'),
  parts=(
    part('hair', hair={'bald': 'mrClean', 'short': 'fonze', 'long': 'full', 'mohawk': 'mrT', 'bob': 'pixie'}),
    part('eyes', eyes={'open': ['eyes', 'round'], 'closed': 'smiling'}),
    part('facialHair', facial_hair={'beard': 'beard'}, absent=0.75),
    part('glasses', glasses={'glasses': ['round', 'square']}, absent=0.5),
    part(
      'mouth', mouth={'smile': 'smile', 'laugh': 'laughing', 'grin': 'nervous', 'frown': 'frown', 'open': 'surprised'}
    ),
    part('clothes', clothes={'collared shirt': 'collared', 't-shirt': 'crew'}),
  ),
  tints={
    'hair_color': Tint(HAIR, ('hair', 'facialHair')),
    'skin': Tint(SKIN, ('base',)),
    'clothes_color': Tint(CLOTHES, ('shirt',)),
    'background': Tint(LIGHT_BACKGROUND, ('background',)),
  },
  base={'glasses': 'none', 'facial_hair': 'none'},
  fixed={'earringsProbability': 0, 'glassesColor': ['#20242c']},
)

DYLAN = Style(
  name='dylan',
  kind='person',
  nouns=('doodle',),
  bound=('hair', 'hair_color'),
  parts=(
    part(
      'hair',
      hair={
        'two buns': 'buns',
        'flat top': 'flatTop',
        'long curly': 'longCurls',
        'short': 'plain',
        'bob': 'roundBob',
        'shaggy': 'shaggy',
        'curly': 'shortCurls',
        'spiky': 'spiky',
      },
    ),
    part(
      'mood',
      mouth={'wavy': 'confused', 'smile': 'happy', 'flat': 'neutral', 'frown': 'sad', 'laugh': 'superHappy'},
    ),
  ),
  tints={
    'hair_color': Tint(HAIR, ('hair',)),
    'skin': Tint(SKIN, ('skin',)),
    'background': Tint(LIGHT_BACKGROUND, ('background',)),
  },
  fixed={'facialHairProbability': 0},
)

AVATAAARS = Style(
  name='avataaars',
  kind='person',
  nouns=('avatar',),
  bound=('hair', 'hair_color'),
  parts=(
    part(
      'top',
      hair={
        'bald': None,
        'bob': 'bob',
        'bun': 'bun',
        'long': ['straight01', 'straight02'],
        'afro': 'fro',
        'short': ['shortFlat', 'theCaesar'],
        'curly': 'shortCurly',
        'shaggy': 'shaggy',
      },
      hat={'hijab': 'hijab', 'turban': 'turban', 'beanie': 'winterHat02'},
    ),
    part('eyes', eyes={'open': 'default', 'happy': 'happy', 'closed': 'closed', 'heart': 'hearts'}),
    part(
      'mouth',
      mouth={'smile': 'twinkle', 'laugh': 'smile', 'flat': 'serious', 'frown': 'sad', 'grimace': 'grimace'},
    ),
    part(
      'accessories',
      glasses={'glasses': ['prescription02', 'round'], 'sunglasses': ['sunglasses', 'wayfarers']},
      absent=0.5,
    ),
    part(
      'facialHair', facial_hair={'beard': ['beardMajestic', 'beardMedium'], 'moustache': 'moustacheMagnum'}, absent=0.7
    ),
    part(
      'clothes', clothes={'hoodie': 'hoodie', 'overalls': 'overall', 't-shirt': ['shirtCrewNeck', 'shirtScoopNeck']}
    ),
  ),
  tints={
    'hair_color': Tint(HAIR, ('hair', 'facialHair')),
    'hat_color': Tint(CLOTHES, ('hat',)),
    'skin': Tint(SKIN, ('skin',)),
    'clothes_color': Tint(CLOTHES, ('clothes',)),
    'background': Tint(LIGHT_BACKGROUND, ('background',)),
  },
  base={'hat': 'none', 'glasses': 'none', 'facial_hair': 'none'},
  fixed={'accessoriesColor': ['#262e33'], 'eyebrowsVariant': ['default', 'defaultNatural']},
)
