"""A dataset: records that can be read in any order, and how to decode one.

A source is anything with `len(source)` and `source[i]`: an ArrayRecord data source of TFDS, a list. The loader
asks for records by number, which is what makes the batch of a step a pure function of the step.
"""

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen import digests
from jaxgen.home import home

Record = dict[str, Any]
INFO = 'dataset_info.json'  # what TFDS opens a prepared dataset by; written last


class BadRecord(ValueError):
  """One record cannot be read; the loader puts another in its place and counts it."""


class NoSuchSplit(ValueError):
  """A dataset has no split of that name."""


class Dataset(NamedTuple):
  """One split of a dataset.

  Attributes:
    name: name in messages and files.
    split: a split as TFDS writes it: 'train', 'test', 'train[:100]', 'train+test'.
    source: random access to raw records.
    decode: raw record to {'image': float32 h w c in [-1, 1]} and, where the dataset has them,
      {'label': int32 scalar, 'caption': str, ...}. A ValueError or OSError says that the record is bad.
    fingerprint: changes whenever a record or the way it is decoded does; a run refuses to resume on another one.
    class_names: the labels' names in order; empty for a dataset without labels.
  """

  name: str
  split: str
  source: Sequence[Any]
  decode: Callable[[Any], Record]
  fingerprint: str
  class_names: tuple[str, ...] = ()

  @property
  def num_examples(self) -> int:
    return len(self.source)

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def read(self, index: int, raw: Any = None) -> Record:
    """The decoded record at `index`.

    Args:
      index: its number.
      raw: the record as `read_raw` has read it, with others; None to read it now.

    Raises:
      BadRecord: the bytes on disk are damaged.
      OSError: it could not be read after several tries, which does not mean that it is damaged.
    """
    if raw is not None:
      with contextlib.suppress(ValueError, OSError, RuntimeError, MemoryError):  # read again below, with patience
        return self.decode(raw)
    try:
      return digests.patiently(lambda: self.decode(self.source[index]))
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
      record = f'record {index} of {self.name} ({self.split})'
      if digests.is_passing(error):
        raise OSError(
          f'{record} could not be read ({error}), tried {len(digests.WAITS) + 1} times; this is no damage: see to the '
          'disk or the network and start again'
        ) from error
      raise BadRecord(f'{record}: {error}') from error


def read_raw(dataset: Dataset, indices: Sequence[int]) -> dict[int, Any]:
  """Raw records by number, read together where the source can: {} where it cannot, or one of them cannot be read.

  A source such as ArrayRecord's needs a few milliseconds for a single record of a large shard, and not many more for
  a hundred.
  """
  together = getattr(dataset.source, '__getitems__', None)
  wanted = sorted({index for index in indices if index < dataset.num_examples})
  if together is None or not wanted:
    return {}
  try:
    return dict(zip(wanted, together(wanted), strict=True))
  except (ValueError, OSError, RuntimeError, MemoryError):
    return {}  # `read` finds out which one it is


def at_resolution(dataset: Dataset, size: int) -> Dataset:
  """The dataset with images of size x size: larger ones are cropped and resized as in ADM, smaller ones get a black
  border, such as 28x28 images that become 32x32; the picture before an edit and a control picture, too."""
  from jaxgen.data.image import center_crop, to_float

  height, width, _ = dataset.read(0)['image'].shape
  if (height, width) == (size, size):
    return dataset
  before = ((size - height) // 2, (size - width) // 2)
  border = [(first, size - side - first) for first, side in zip(before, (height, width), strict=True)]

  def with_border(image: np.ndarray) -> np.ndarray:
    return np.pad(image, (*border, (0, 0)), constant_values=-1.0)

  def cropped(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    pixels = np.round((image + 1) * 127.5).astype(np.uint8)
    made = center_crop(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), size)
    return to_float(np.asarray(made).reshape(size, size, -1))

  change, how = (with_border, 'padded') if max(height, width) <= size else (cropped, 'cropped')

  def decode(record: Any) -> Record:
    read = dataset.decode(record)
    changed = {field: change(read[field]) for field in ('image', 'before') if field in read}
    if 'control' in read:  # in [0, 1]
      changed['control'] = (change(read['control'] * 2 - 1) + 1) / 2
    return read | changed

  return dataset._replace(decode=decode, fingerprint=f'{dataset.fingerprint} {how} to {size}')


def part(dataset: Dataset, split: str, index: Callable[[int], int], num: int) -> Dataset:
  """The records `index(0)`, ..., `index(num - 1)` of a dataset, as a split of that name."""

  class Part(Sequence):
    def __len__(self) -> int:
      return num

    def __getitem__(self, i: Any) -> Any:
      return dataset.source[index(int(i))]

  return dataset._replace(split=split, source=Part(), fingerprint=f'{dataset.fingerprint} {split}')


def check_record(dataset: Dataset, record: Record) -> None:
  """Refuses a record that no network should be trained on.

  Raises:
    ValueError: it has no image, one that is not float [h, w, c], or a label that is none of the classes.
  """
  where = f'{dataset.name} ({dataset.split})'
  if 'image' not in record:
    raise ValueError(f'{where} has records without an image; they have {", ".join(sorted(record)) or "nothing"}')
  image = np.asarray(record['image'])
  if image.dtype.kind != 'f':
    raise ValueError(f'{where} has images of {image.dtype}; wanted float32 in [-1, 1]: data.to_float(image)')
  label = record.get('label')
  if label is not None and dataset.class_names and not 0 <= int(label) < dataset.num_classes:
    raise ValueError(f'{where} has the label {label}; with {dataset.num_classes} classes they go from 0')


def default_data_dir() -> pathlib.Path:
  """Where prepared datasets live: `data` in $JAXGEN_HOME, else in ~/.cache/jaxgen."""
  return home() / 'data'
