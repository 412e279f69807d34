"""avatars: pictures with known attributes, made by `jaxgen data prepare avatars`.

Words are chosen from the tables in `avatars_styles`, drawn as SVG by dicebear-core and rasterised by resvg. So each
record has its attributes as integers, captions are made from those (`avatars_captions`), and a classifier of attributes
can say whether a sample shows what its prompt says.

Record i of a split is a function of (seed, split, i) and of the versions of the packages. A tenth of the pairs of
words of each style's two bound attributes (hair and its colour, ...) is in no picture of `train`:

  train   pairs that are not held out
  test    held-out pairs only: combinations that a model has never seen
  seen    new pictures, each with the pair of a picture of `train`

Without `hold_out` every split has any pair: what a classifier learns from that measures models by the splits above.

The images are written to part files first, so that a killed preparation continues where it stopped.
"""

import concurrent.futures
import functools
import hashlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8

from jaxgen.data.dataset import Dataset, Record, default_data_dir
from jaxgen.data.datasets import avatars_styles
from jaxgen.data.datasets.avatars_styles import ATTRIBUTES, CONTRASTS, HIDES, VOCABULARY, Style, Words
from jaxgen.data.image import on_white
from jaxgen.data.job import ALONE, Job
from jaxgen.data.recipe import Examples, Recipe, folder, load, opened, prepare
from jaxgen.home import fetched, kept, mirror, remote

VERSION = '1.0.0'
SPLITS = ('train', 'test', 'seen')
PACKAGES = ('dicebear-core', 'dicebear-styles', 'resvg-py')
_PART = 250  # images of a part file
_HELD_OUT = 26  # a tenth of 256 pairs

# Licences as dicebear-styles writes them.
_SPDX = {'CC0 1.0': 'CC0-1.0', 'CC BY 4.0': 'CC-BY-4.0', 'MIT': 'MIT'}


class Options(NamedTuple):
  """Options of `jaxgen data prepare avatars`.

  Attributes:
    styles: names of the styles, in turn.
    size: height and width.
    number: images in `train`; `test` and `seen` have a tenth of it each.
    seed: seed of all choices.
    hold_out: keep the held-out pairs out of `train`, and everything else out of `test`.
  """

  styles: tuple[str, ...] = tuple(style.name for style in avatars_styles.DEFAULT)
  size: int = 64
  number: int = 20_000
  seed: int = 0
  hold_out: bool = True

  @property
  def name(self) -> str:
    """The dataset's name: `avatars`, with what differs from the default."""
    default, parts = Options(), ['avatars']
    if self.size != default.size:
      parts.append(f'{self.size}px')
    if self.number != default.number:
      parts.append(f'{self.number}')
    if self.styles != default.styles:
      short = '_'.join(self.styles).replace('-', '')
      parts.append(short if len(short) <= 40 else hashlib.sha256(short.encode()).hexdigest()[:8])
    if self.seed != default.seed:
      parts.append(f'seed{self.seed}')
    if not self.hold_out:
      parts.append('all_pairs')
    return '_'.join(parts)


DEFAULT = Options()


def avatars(
  split: str = 'train',
  *,
  options: Options = DEFAULT,
  name: str | None = None,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens avatars; `jaxgen data prepare avatars` with the same options makes it.

  Args:
    split: train, test or seen.
    options: options of the drawing.
    name: name of the prepared dataset in place of its options, such as 'avatars_2000_avataaars'.
    data_dir: the folder of prepared datasets.
  """
  if name is not None:
    made = recipe()._replace(name=name)
    return load(folder(made, data_dir), split, command='avatars ...')
  return load(folder(recipe(options), data_dir), split, command=_command(options))


def prepare_avatars(
  options: Options = DEFAULT,
  *,
  data_dir: str | pathlib.Path | None = None,
  progress: bool = False,
  overwrite: bool = False,
  job: Job = ALONE,
) -> pathlib.Path:
  """Draws the dataset unless it is there already; returns its folder.

  The processes of a job draw it together, and the first one writes it.
  """
  how = {'data_dir': data_dir, 'progress': progress, 'overwrite': overwrite}
  return prepare_drawn(recipe(options, data_dir=data_dir), options, picture, job=job, **how)


def prepare_drawn(
  made: Recipe,
  options: Options,
  make: 'Make',
  *,
  data_dir: str | pathlib.Path | None = None,
  progress: bool = False,
  overwrite: bool = False,
  job: Job = ALONE,
) -> pathlib.Path:
  """Prepares what `drawn` draws, by all processes of a job; the other arguments are those of `prepare`."""
  path = folder(made, data_dir)
  parts = parts_folder(made.name, data_dir)
  job.meet(f'the preparation of {made.name}')
  wanted = overwrite or not opened(path).exists()
  job.meet(f'a look at {path}')  # none changes it before all have looked
  if wanted and job.count > 1:
    _draw(options, make, parts, job)
  path = prepare(made, data_dir=data_dir, progress=progress, overwrite=overwrite, job=job)
  if job.index == 0:
    there = remote(parts)
    for place in [epath.Path(parts), *([there] if there else [])]:
      if place.exists():
        place.rmtree()
  elif remote(parts):
    shutil.rmtree(parts, ignore_errors=True)
  return path


def parts_folder(name: str, data_dir: str | pathlib.Path | None) -> pathlib.Path:
  """The folder of a dataset's part files."""
  return mirror(data_dir or default_data_dir()) / f'{name}.parts'


def _draw(options: Options, make: 'Make', parts: pathlib.Path, job: Job) -> None:
  """Draws this process's share of the part files."""
  place = _made_by(options, make, parts)
  every = [(split, part) for split in SPLITS for part in range(_num_parts(options, split))]
  with _pool(place) as pool:
    mine = [pool.submit(_make_part, options, split, make, part, place) for split, part in every[job.index :: job.count]]
    for done, future in enumerate(concurrent.futures.as_completed(mine), 1):
      future.result()
      job.at(f'{done} of {len(mine)} parts of {parts.stem}')
  job.meet(f'the parts of {parts.stem}')


def recipe(options: Options = DEFAULT, *, data_dir: str | pathlib.Path | None = None) -> Recipe:
  """The recipe of avatars with these options.

  Args:
    options: options of the drawing.
    data_dir: the folder of prepared datasets, where part files are kept; `default_data_dir()` when None.

  Raises:
    ValueError: there is no such style, or no image is asked for.
  """
  unknown = [name for name in options.styles if name not in avatars_styles.STYLES]
  if unknown or not options.styles:
    raise ValueError(f'avatars have no style {(unknown or [""])[0]!r}; there are {", ".join(avatars_styles.STYLES)}')
  if options.size < 16 or options.number < 10:
    raise ValueError(f'size {options.size} and number {options.number} of avatars; want at least 16 and 10')
  parts = parts_folder(options.name, data_dir)
  return Recipe(
    name=options.name,
    version=VERSION,
    about=f'{options.number:,} avatars, {options.size}x{options.size} RGB, {len(options.styles)} styles, captions',
    license='CC0-1.0, CC-BY-4.0 and other; each record has its own',
    image_shape=(options.size, options.size, 3),
    examples=lambda source: _examples(source, options, parts),
    class_names=options.styles,
    texts=('style', 'licence', 'author', 'source'),
    integers={'attributes': (len(ATTRIBUTES),)},
    notes=lambda: {'packages': versions(), 'vocabulary': json.dumps(VOCABULARY), 'seed': str(options.seed)},
  )


def _command(options: Options) -> str:
  default, words = Options(), ['avatars']
  for field in ('size', 'number', 'seed'):
    if getattr(options, field) != getattr(default, field):
      words.append(f'--{field} {getattr(options, field)}')
  if options.styles != default.styles:
    words.append(f'--styles {",".join(options.styles)}')
  if not options.hold_out:
    words.append('--all-pairs')
  return ' '.join(words)


def versions() -> str:
  """The packages that draw, with their versions.

  Raises:
    ValueError: they are not installed.
  """
  try:
    return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in PACKAGES)
  except importlib.metadata.PackageNotFoundError as error:
    raise ValueError(
      f"avatars are drawn by {error.name}, which is not installed; run `pip install 'jaxgen[avatars]'`"
    ) from error


# --- words


class Choice(NamedTuple):
  """What a picture shows: `words` of the attributes that can be seen, and the variant of each component."""

  words: Words
  variants: dict[str, str | None]
  colors: dict[str, str]


def choose(style: Style, rng: np.random.Generator) -> Choice:
  """Words for every attribute of a style, with colours that are distinct (CONTRASTS)."""
  words: Words = {'style': style.name, **style.base}
  variants: dict[str, str | None] = {}
  for part in style.parts:
    if part.absent and rng.random() < part.absent:
      variants |= dict.fromkeys(part.components)
      continue
    attribute, word = _pick(rng, [(attribute, word) for attribute in part.words for word in part.words[attribute]])
    variant = _pick(rng, part.words[attribute][word])
    words[attribute] = word
    variants |= dict(zip(part.components, variant if isinstance(variant, tuple) else (variant,), strict=True))
  for attribute, tint in style.tints.items():
    words[attribute] = _pick(rng, list(tint.palette))
  hidden = {name for attribute, found, names in HIDES if words.get(attribute) in found for name in names}
  for attribute, others in CONTRASTS:
    seen = [other for other in others if other in words and other not in hidden]
    while attribute in words and any(_clash(style, words, attribute, other) for other in seen):
      words[attribute] = _pick(rng, list(style.tints[attribute].palette))
  colors = {color: tint.palette[words[name]] for name, tint in style.tints.items() for color in tint.colors}
  return Choice({name: word for name, word in words.items() if name not in hidden}, variants, colors)


def _clash(style: Style, words: Words, one: str, other: str) -> bool:
  colors = (style.tints[name].palette[words[name]] for name in (one, other))
  return words[one] == words[other] or avatars_styles.are_near(*colors)


def _pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
  return items[int(rng.integers(len(items)))]


def bound_pair(style: Style, words: Words) -> tuple[str, str] | None:
  """The words of the style's bound attributes; None where one cannot be seen."""
  first, second = (words.get(name) for name in style.bound)
  return None if first is None or second is None else (first, second)


def held_out(style: Style, pair: tuple[str, str] | None) -> bool:
  """Whether a pair of words is kept out of `train`."""
  return pair is not None and hashlib.sha256('/'.join((style.name, *pair)).encode()).digest()[0] < _HELD_OUT


def record_choice(options: Options, split: str, number: int) -> tuple[Style, Choice]:
  """What record `number` of a split shows."""
  style = avatars_styles.STYLES[options.styles[number % len(options.styles)]]
  rng = np.random.default_rng([options.seed, SPLITS.index(split), number])
  wanted = _pair_of_train(options, style, number, rng) if split == 'seen' else None
  while True:
    choice = choose(style, rng)
    pair = bound_pair(style, choice.words)
    fits = not options.hold_out or held_out(style, pair) == (split == 'test')
    if fits and (split != 'seen' or pair == wanted):
      return style, choice


def _pair_of_train(options: Options, style: Style, number: int, rng: np.random.Generator) -> tuple[str, str] | None:
  """The pair of some record of `train` of the same style."""
  row = number % len(options.styles)
  first = int(rng.integers(-(-(options.number - row) // len(options.styles))))
  return bound_pair(style, record_choice(options, 'train', row + first * len(options.styles))[1].words)


def encode_words(words: Words) -> Int32[np.ndarray, 'a']:
  """Words to their numbers in VOCABULARY, -1 for attributes without a word."""
  return np.array([VOCABULARY[name].index(words[name]) if name in words else -1 for name in ATTRIBUTES], np.int32)


def decode_words(attributes: Sequence[int] | np.ndarray) -> Words:
  """The words of a record's attributes; the inverse of `encode_words`."""
  return {name: VOCABULARY[name][int(i)] for name, i in zip(ATTRIBUTES, attributes, strict=True) if i >= 0}


# --- pictures


@functools.cache
def definition(name: str) -> dict[str, Any]:
  """A style's definition in dicebear-styles."""
  import dicebear_styles

  path = pathlib.Path(dicebear_styles.__path__[0]) / f'{name}.json'
  return json.loads(path.read_text(encoding='utf-8'))


@functools.cache
def _style(name: str) -> Any:
  import dicebear

  return dicebear.Style(definition(name))  # it is validated, which takes two seconds


def provenance(name: str) -> dict[str, str]:
  """Licence, author and source of a style, as the definition has them."""
  meta = definition(name)['meta']
  licence = meta['license']['name'].strip().rstrip('.')
  return {
    'style': name,
    'licence': _SPDX.get(licence, f'LicenseRef-{licence.replace(" ", "-")}'),
    'author': meta['creator']['name'],
    'source': f'{meta["source"]["name"]} ({meta["source"]["url"]}), drawn by DiceBear',
  }


def draw(style: Style, choice: Choice, *, size: int, seed: str) -> UInt8[np.ndarray, 'size size 3']:
  """The picture.

  Args:
    style: the style.
    choice: the chosen parts.
    size: height and width.
    seed: seed of what no attribute names, such as the places of stars.
  """
  import dicebear

  options: dict[str, Any] = {'seed': seed} | dict(style.fixed)
  for component, variant in choice.variants.items():
    if variant is None:
      options[f'{component}Probability'] = 0
    else:
      options |= {f'{component}Variant': [variant], f'{component}Probability': 100}
  options |= {f'{color}Color': [value] for color, value in choice.colors.items()}
  return rasterise(dicebear.Avatar(_style(style.name), options).to_string(), size)


def rasterise(svg: str, size: int) -> UInt8[np.ndarray, 'size size 3']:
  """An SVG drawn on a white square, in its middle.

  Raises:
    ValueError: resvg cannot draw it.
  """
  import resvg_py
  from PIL import Image

  png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
  with Image.open(io.BytesIO(bytes(png))) as image:
    drawn = on_white(image).convert('RGB')
  if drawn.size == (size, size):
    return np.asarray(drawn)
  square = Image.new('RGB', (size, size), 'white')
  drawn.thumbnail((size, size))
  square.paste(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
  return np.asarray(square)


# --- preparation

Make = Callable[[Options, str, int], Record]  # (options, split, number of the record) -> its arrays


def picture(options: Options, split: str, number: int) -> Record:
  """The arrays of a record of avatars."""
  style, choice = record_choice(options, split, number)
  image = draw(style, choice, size=options.size, seed=f'{options.seed} {split} {number}')
  return {'image': image, 'attributes': encode_words(choice.words)}


def drawn(options: Options, make: Make, parts: pathlib.Path) -> Examples:
  """The records of each split, drawn by as many processes as there are cores.

  Args:
    options: options of the drawing.
    make: makes a record; a function of a module, so that other processes find it.
    parts: folder of the part files.
  """
  parts = _made_by(options, make, parts)
  pool = functools.cache(lambda: _pool(parts))  # each process needs ten seconds to start, so that all splits share them
  return {split: _split(options, split, make, parts, pool) for split in SPLITS}


def _made_by(options: Options, make: Make, parts: pathlib.Path) -> pathlib.Path:
  """The folder of the part files that these options and packages make."""
  made_by = (options, make.__qualname__, versions(), avatars_styles.STYLES)
  return parts / hashlib.sha256(repr(made_by).encode()).hexdigest()[:12]


def _pool(parts: pathlib.Path) -> concurrent.futures.Executor:
  parts.mkdir(parents=True, exist_ok=True)
  return concurrent.futures.ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context('spawn'))


def no_source(source: pathlib.Path | None) -> None:
  """Raises ValueError where files are given for what is drawn."""
  if source is not None:
    raise ValueError(f'avatars are drawn and need no --source; got {source}')


def _count(options: Options, split: str) -> int:
  return options.number if split == 'train' else options.number // 10


def _num_parts(options: Options, split: str) -> int:
  return -(-_count(options, split) // _PART)


def _examples(source: pathlib.Path | None, options: Options, parts: pathlib.Path) -> Examples:
  no_source(source)
  return drawn(options, picture, parts)


def _split(
  options: Options,
  split: str,
  make: Make,
  parts: pathlib.Path,
  pool: Callable[[], concurrent.futures.Executor],
) -> Iterator[Record]:
  """Records in order."""
  numbers = range(_num_parts(options, split))
  try:
    made = [pool().submit(_make_part, options, split, make, part, parts) for part in numbers]
    for part in made:
      yield from _read_part(options, part.result())
    if split == SPLITS[-1]:
      pool().shutdown()
  except BaseException:  # also when the writer stops asking
    pool().shutdown(cancel_futures=True)
    raise


def _make_part(options: Options, split: str, make: Make, part: int, folder: pathlib.Path) -> pathlib.Path:
  """Draws _PART records, unless an earlier run has; the file is complete or absent."""
  path = fetched(folder / f'{split}-{part:05}.npz')
  if path.exists():
    return path
  numbers = range(part * _PART, min((part + 1) * _PART, _count(options, split)))
  records = [make(options, split, number) for number in numbers]
  arrays: dict[str, Any] = {name: np.stack([record[name] for record in records]) for name in records[0]}
  temporary = path.with_suffix(f'.{os.getpid()}.tmp')
  with temporary.open('wb') as file:
    np.savez_compressed(file, **arrays)
  os.replace(temporary, path)
  return kept(path)


def _read_part(options: Options, path: pathlib.Path) -> Iterator[Record]:
  with np.load(path) as file:
    arrays = dict(file)
  for number, attributes in enumerate(arrays['attributes']):
    style = decode_words(attributes)['style']
    about = {'label': options.styles.index(style), **provenance(style)}
    yield {name: array[number] for name, array in arrays.items()} | about
