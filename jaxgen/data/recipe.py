"""Prepares a dataset on disk from its original files, and opens it as a `Dataset`.

A recipe says what a dataset holds and how to read its original files. `prepare` writes it once, through TFDS, as
ArrayRecord files with PNG images, in `DATA_DIR/NAME/VERSION`; `load` opens what was written. TFDS writes into a
folder of another name and renames it when all is there, so a killed preparation leaves nothing that could be read.
Where the originals can be read by number, several processes share the work (shard_writer.py).
A prepared dataset records the files that it was made from, and is made again when they have changed.
"""

import contextlib
import fcntl
import hashlib
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxgen.data.dataset import INFO, Dataset, Record, default_data_dir
from jaxgen.data.image import decode_image, to_float
from jaxgen.data.job import ALONE, Job, Numbered
from jaxgen.home import fetched, kept, mirror

Examples = Mapping[str, Iterator[Record] | Numbered]  # split -> examples, or what makes them by number


class Recipe(NamedTuple):
  """What a dataset holds and how to make it.

  Attributes:
    name: also the folder's name and the word after `jaxgen data prepare`.
    version: version of the recipe; raise it when the prepared records would differ.
    about: one line for `jaxgen data list`.
    license: licence of the images.
    image_shape: h w c.
    examples: original files (None: in the package) to the examples of each split, {'image': uint8 h w c,
      'label': int, 'caption': str, ...}, or to what makes them by number, with encoded images, of all
      splits. It looks for the files when called, not when the first example is asked for.
    class_names: the labels' names in order; empty for a dataset without labels.
    texts: names of the fields that are text.
    origin: changes with the original files and the options that the records depend on; empty where they cannot change.
    integers: shapes of the fields that are arrays of int32.
    notes: further facts that are kept with the dataset and enter its fingerprint; called when it is written.
  """

  name: str
  version: str
  about: str
  license: str
  image_shape: tuple[int, int, int]
  examples: Callable[[pathlib.Path | None], Examples]
  class_names: tuple[str, ...] = ()
  texts: tuple[str, ...] = ()
  origin: str = ''
  integers: Mapping[str, tuple[int, ...]] = {}
  notes: Callable[[], Mapping[str, str]] = dict


class Sized(NamedTuple):
  """Options of a dataset of pictures that are made at any size.

  Attributes:
    of: name of the dataset.
    size: height and width.
  """

  of: str
  size: int = 64

  @property
  def name(self) -> str:
    """The prepared dataset's name: that of the dataset, with the size where it is not the default."""
    return self.of + (f'_{self.size}px' if self.size != Sized(self.of).size else '')

  def check(self) -> None:
    """Raises ValueError where pictures would be too small."""
    if self.size < 8:
      raise ValueError(f'size {self.size} of {self.of}; it must be 8 or more')


def folder(recipe: Recipe, data_dir: str | pathlib.Path | None = None) -> pathlib.Path:
  """Where the dataset is, or would be, prepared."""
  return mirror(data_dir or default_data_dir()) / recipe.name / recipe.version


def prepare(
  recipe: Recipe,
  *,
  source: str | pathlib.Path | None = None,
  data_dir: str | pathlib.Path | None = None,
  progress: bool = False,
  overwrite: bool = False,
  job: Job = ALONE,
) -> pathlib.Path:
  """Writes the dataset unless it is there already, made from the same files; returns its folder.

  Args:
    recipe: the dataset.
    source: the original files, a folder.
    data_dir: the folder of prepared datasets, also gs://BUCKET/FOLDER; `default_data_dir()` when None.
    progress: whether to show a bar, in a terminal, and a line with the result.
    overwrite: makes it again where it is there already.
    job: processes that share the work, where the originals can be read by number; the first one makes others alone.
  """
  path = opened(folder(recipe, data_dir))
  place = None if source is None else pathlib.Path(source).expanduser()
  if place is not None:
    recipe = recipe._replace(origin=origin_of(place))
  if job.count == 1:
    with alone(path):
      _prepare(recipe, place, path, job, progress, overwrite)
  else:
    _prepare(recipe, place, path, job, progress, overwrite)
  return opened(path)


def _prepare(
  recipe: Recipe, place: pathlib.Path | None, path: pathlib.Path, job: Job, progress: bool, overwrite: bool
) -> None:
  job.meet(f'the preparation of {recipe.name}')
  changed = path.exists() and recipe.origin not in ('', read_origin(path))
  there = path.exists() and not changed and not overwrite
  job.meet(f'a look at {path}')  # no process changes it before all have checked
  if there:
    return
  if changed and progress:
    print(f'{path.parent.name} was made from other files than are there now; preparing it again', file=sys.stderr)
  from jaxgen.data import shard_writer, tfds_builder

  examples = recipe.examples(place)
  if job.index == 0 and path.exists():  # not before the original files are found
    shutil.rmtree(path, ignore_errors=True)
  numbered = {split: made for split, made in examples.items() if isinstance(made, Numbered)}
  if numbered:
    about = tfds_builder.layout(recipe)
    identity = f'{recipe.name} {recipe.version} {recipe.class_names} {about.metadata}'
    live = progress and sys.stderr.isatty()
    report = (lambda message: print(f'\r\x1b[K{message}', end='', file=sys.stderr)) if live else (lambda message: None)
    shard_writer.write(path, about, numbered, identity=identity, job=job, report=report)
    if live:
      print(file=sys.stderr)
    return
  if job.index == 0:
    try:
      tfds_builder.write(recipe, examples, path.parent.parent, progress=progress)
    except OSError:
      if not path.exists():  # else another process was first with the same content
        raise
    kept(path, last=INFO)
  job.meet(f'the end of {recipe.name}')


def opened(path: pathlib.Path) -> pathlib.Path:
  """The same path of a prepared dataset, which is brought from its bucket if it is there and not here."""
  return fetched(path, last=INFO)


def origin_of(source: pathlib.Path) -> str:
  """Changes with the name, size or time of any file in a folder; empty where there is none."""
  files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else []
  about = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
  return hashlib.sha256(repr(about).encode()).hexdigest() if about else ''


def read_origin(path: pathlib.Path) -> str:
  """The fingerprint of the original files that a prepared dataset recorded; empty where it recorded none."""
  from jaxgen.data import tfds_builder

  return tfds_builder.open_folder(path).info.metadata.get(tfds_builder.ORIGIN, '')


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
  """Lets one process of this machine at a time prepare a dataset; what a killed one has left is deleted."""
  path.parent.parent.mkdir(parents=True, exist_ok=True)
  with (path.parent.parent / f'.{path.parent.name}.lock').open('w') as lock:
    with contextlib.suppress(OSError):  # a file system without locks: TFDS's renaming is safe too, only slower
      fcntl.flock(lock, fcntl.LOCK_EX)
      for left in path.parent.glob('incomplete.*'):
        shutil.rmtree(left, ignore_errors=True)
    yield


def load(path: pathlib.Path, split: str, *, command: str = '') -> Dataset:
  """Opens a prepared dataset.

  Args:
    path: its folder, DATA_DIR/NAME/VERSION, or the mirror of one in a bucket.
    split: a split as TFDS writes it.
    command: arguments of `jaxgen data prepare` that make it; its name when empty.

  Raises:
    FileNotFoundError: it is not prepared; the message has the command.
    ValueError: there is no such split.
  """
  name, data_dir = path.parent.name, path.parent.parent
  if not opened(path).exists():
    option = '' if data_dir == default_data_dir() else f' --data-dir {data_dir}'
    raise FileNotFoundError(
      f'dataset {name} is not in {data_dir}; run `jaxgen data prepare {command or name}{option}` first'
    )
  from jaxgen.data import tfds_builder

  builder = tfds_builder.open_folder(path)
  source = tfds_builder.data_source(builder, split, image_field='image')
  channels = builder.info.features['image'].shape[-1]
  metadata = {key: value for key, value in builder.info.metadata.items() if key != tfds_builder.ORIGIN}
  digests = ' '.join(f'{name}={digest}' for name, digest in sorted(metadata.items()))
  return Dataset(
    name=name,
    split=split,
    source=source,
    decode=lambda record: decode(record, image='image', channels=channels),
    fingerprint=hashlib.sha256(f'{split} {digests}'.encode()).hexdigest(),
    class_names=tfds_builder.class_names(builder, 'label'),
  )


def decode(record: Record, *, image: str, channels: int, size: int | None = None) -> Record:
  """The field `image` to floats, integers to int32, bytes to text; an `image` that is an array is taken as it is."""

  def value(name: str) -> np.ndarray | np.int32 | str:
    if name == image and isinstance(record[name], bytes):
      return to_float(decode_image(record[name], channels=channels, size=size))
    if name == image:
      return np.asarray(record[name], np.float32)
    return record[name].decode() if isinstance(record[name], bytes) else np.int32(record[name])

  return {name: value(name) for name in record}
