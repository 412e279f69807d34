"""Opens the dataset that `--config.dataset` names: one function for all configs.

  emoji32, fashion_mnist, ...   a dataset that jaxgen has a recipe for (see `jaxgen data list`), also one prepared with
                                other options, by its name: avatars_2000_avataaars
  folder:PATH, zip:FILE         your own images, cropped and resized once, at the first use
  pairs:PATH                    your own pairs of pictures, PATH/before and PATH/after, for edits in words
  parquet:PATTERN               the same, from Parquet files with a column of image bytes
  webdataset:PATTERN            shards of samples in .tar files, read where they are
  npz:FILE                      samples as uint8 [n, h, w, c] in `arr_0`, and labels in `arr_1` if any
  tfds:NAME, or NAME            a dataset of TFDS; tfds:NAME is prepared at the first use

Paths may be relative or begin with `~`.
"""

import contextlib
import difflib
import functools
import pathlib
import sys
from typing import Protocol, runtime_checkable

import jax

from jaxgen.data import described
from jaxgen.data.arrays import npz_dataset
from jaxgen.data.dataset import Dataset, NoSuchSplit, at_resolution, part
from jaxgen.data.datasets import image_folder, parquet
from jaxgen.data.datasets.avatars import avatars
from jaxgen.data.datasets.avatars32 import avatars32
from jaxgen.data.datasets.avatars_pairs import avatars_pairs
from jaxgen.data.datasets.avatars_segments import avatars_segments
from jaxgen.data.datasets.avatars_subject import avatars_subject
from jaxgen.data.datasets.emoji32 import emoji32
from jaxgen.data.datasets.emoji64 import emoji64
from jaxgen.data.datasets.emoji_pairs import emoji_pairs
from jaxgen.data.datasets.fashion_mnist import fashion_mnist
from jaxgen.data.datasets.mnist import mnist
from jaxgen.data.datasets.openmoji import openmoji
from jaxgen.data.datasets.own_pairs import own_pairs
from jaxgen.data.datasets.tfds_dataset import prepare_tfds, tfds_dataset, tfds_fields
from jaxgen.data.datasets.webdataset import webdataset
from jaxgen.data.recipe import load


@runtime_checkable
class Open(Protocol):
  """Opens a split of a named dataset."""

  def __call__(self, split: str, *, data_dir: str | None = None) -> Dataset: ...


NAMED: dict[str, Open] = {
  'avatars': avatars,
  'avatars32': lambda split, data_dir=None: avatars32(split),
  'avatars_pairs': avatars_pairs,
  'avatars_segments': avatars_segments,
  'avatars_subject': avatars_subject,
  'emoji32': emoji32,
  'emoji64': emoji64,
  'emoji_pairs': emoji_pairs,
  'fashion_mnist': fashion_mnist,
  'mnist': mnist,
  'openmoji': openmoji,
}
KINDS = ('folder', 'zip', 'pairs', 'parquet', 'webdataset', 'npz', 'tfds')
_HELD_OUT = 10  # one record in this many is held out for tests, where a dataset has no test split
_CACHED = 2**31  # bytes of decoded records that may stay in memory


class UnknownDataset(FileNotFoundError):
  """`dataset` has none of the forms above."""


def source(spec: str, split: str = 'train', *, resolution: int = 0, data_dir: str | None = None) -> Dataset:
  """Opens the dataset that `--config.dataset` names.

  Args:
    spec: one of the forms above.
    split: a split as TFDS writes it; of one's own images without test images, any split is 'train', with a warning.
    resolution: side of the images; larger ones are cropped and resized, smaller ones of named datasets get a border.
      0 for images as they are.
    data_dir: the folder of prepared datasets.

  Raises:
    FileNotFoundError: it is not there, or not prepared.
    ValueError: it cannot be read, or needs a resolution.
  """
  dataset = described.opened((spec, split, resolution), lambda: _source(spec, split, resolution, data_dir))
  assert dataset is not None
  return dataset


def _source(spec: str, split: str, resolution: int, data_dir: str | None) -> Dataset:
  kind, _, place = spec.partition(':')
  if kind not in KINDS or not place:
    return _named(spec, split, resolution, data_dir or None)
  try:
    return _own(kind, place, split, resolution, data_dir or None)
  except NoSuchSplit as error:
    if '[' in split or '+' in split:
      raise
    _say(f'{error}; its train split is used instead')
    return _own(kind, place, 'train', resolution, data_dir or None)


def train_and_test(spec: str, *, resolution: int = 0, data_dir: str | None = None) -> tuple[Dataset, Dataset]:
  """The train and test splits; where there is no test split, one record in ten is held out for it."""

  @functools.cache
  def both() -> tuple[Dataset, Dataset]:
    return _train_and_test(spec, resolution, data_dir)

  train = described.opened((spec, 'train of two', resolution), lambda: both()[0])
  test = described.opened((spec, 'test of two', resolution), lambda: both()[1])
  assert train is not None and test is not None
  return train, test


def _train_and_test(spec: str, resolution: int, data_dir: str | None) -> tuple[Dataset, Dataset]:
  kind, _, place = spec.partition(':')
  train = _source(spec, 'train', resolution, data_dir)
  if kind not in KINDS or not place:
    return train, _source(spec, 'test', resolution, data_dir)
  try:
    return train, _own(kind, place, 'test', resolution, data_dir or None)
  except NoSuchSplit:
    num, n = max(train.num_examples // _HELD_OUT, 1), train.num_examples
    every = _HELD_OUT - 1  # the last of every ten records is held out
    return (
      part(train, f'train without 1 in {_HELD_OUT}', lambda i: i + i // every, n - num),
      part(train, f'1 in {_HELD_OUT} of train', lambda i: min(i * _HELD_OUT + every, n - 1), num),
    )


def held_out_split(spec: str, *, resolution: int = 0, data_dir: str | None = None) -> Dataset | None:
  """The validation split, else the test split, which the run does not train on; None where there is neither."""
  return described.opened((spec, 'held out', resolution), lambda: _held_out(spec, resolution, data_dir))


def _held_out(spec: str, resolution: int, data_dir: str | None) -> Dataset | None:
  kind, _, place = spec.partition(':')
  for split in ('validation', 'test'):
    with contextlib.suppress(NoSuchSplit):
      if kind in KINDS and place:
        return _own(kind, place, split, resolution, data_dir or None)
      return _named(spec, split, resolution, data_dir or None)
  return None


def fits_in_memory(dataset: Dataset) -> bool:
  """Whether all decoded images may be kept: at most 2 GiB."""
  return dataset.num_examples * dataset.read(0)['image'].nbytes <= _CACHED


def _named(name: str, split: str, resolution: int, data_dir: str | None) -> Dataset:
  opened = NAMED.get(name) or _with_options(name)
  if opened is not None:
    dataset = opened(split, data_dir=data_dir)
    return at_resolution(dataset, resolution) if resolution else dataset
  try:
    return _tfds(name, split, resolution, data_dir)
  except FileNotFoundError as error:
    close = difflib.get_close_matches(name.partition(':')[0], [*NAMED, *KINDS], n=1)
    if not close and ':' not in name:
      raise
    meant = f'did you mean {close[0]!r}? ' if close else ''
    forms = ', '.join([*map(repr, NAMED), *(f'{kind}:...' for kind in KINDS)])
    raise UnknownDataset(f'config.dataset is {name!r}; {meant}it can be {forms}, or one of TFDS ({error})') from error


def _with_options(name: str) -> Open | None:
  """How a dataset is opened that was prepared with other options than its default, such as avatars_2000_avataaars."""
  for opened in (avatars_pairs, avatars_segments, avatars_subject, avatars, emoji_pairs, openmoji):
    if name.startswith(f'{opened.__name__}_') and ':' not in name:
      return functools.partial(opened, name=name)
  return None


def _own(kind: str, place: str, split: str, resolution: int, data_dir: str | None) -> Dataset:
  size = resolution or None
  match kind:
    case 'folder' | 'zip':
      return _folder(place, split, _wanted(kind, place, resolution), data_dir)
    case 'pairs':
      return own_pairs(place, split, size=_wanted(kind, place, resolution), data_dir=data_dir, progress=_first())
    case 'parquet':
      size = _wanted(kind, place, resolution)
      return load(parquet.prepare_parquet(place, size=size, data_dir=data_dir, progress=_first()), split)
    case 'webdataset':
      return webdataset(place, split, size=size, data_dir=data_dir)
    case 'npz':
      return npz_dataset(pathlib.Path(place).expanduser(), split, size=size)
    case _:
      return _tfds(place, split, resolution, data_dir, prepare=True)


def _wanted(kind: str, place: str, resolution: int) -> int:
  if not resolution:
    raise ValueError(f'{kind}:{place} is cropped and resized to one size; say which, --config.resolution=64')
  return resolution


def _folder(place: str, split: str, size: int, data_dir: str | None) -> Dataset:
  path = image_folder.prepared_folder(place, size, None, data_dir)
  there = pathlib.Path(place).expanduser().exists()
  if path.exists() and not there:
    _say(f'{place} is not here; its images as they were prepared in {path} are used')
  else:
    path = image_folder.prepare_image_folder(place, size=size, data_dir=data_dir, progress=_first())
  return load(path, split)


def _tfds(name: str, split: str, resolution: int, data_dir: str | None, *, prepare: bool = False) -> Dataset:
  try:
    fields = tfds_fields(name, data_dir=data_dir)
  except FileNotFoundError:
    if not prepare:
      raise
    prepare_tfds(name, data_dir=data_dir, progress=_first())
    fields = tfds_fields(name, data_dir=data_dir)
  return tfds_dataset(name, split, size=resolution or None, data_dir=data_dir, **fields)  # pyrefly: ignore


def _first() -> bool:
  """Whether this process prints."""
  return jax.process_index() == 0


@functools.cache
def _say(message: str) -> None:
  if _first():
    print(f'jaxgen: {message}', file=sys.stderr)
