"""Datasets of arrays in memory: `from_arrays(images, labels)`, and the samples of an .npz file."""

import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxgen.data.dataset import Dataset, NoSuchSplit, Record, at_resolution, check_record
from jaxgen.data.fields import classes_of
from jaxgen.data.image import to_float
from jaxgen.data.npz import read_npz


def from_arrays(
  images: ArrayLike,
  labels: ArrayLike | None = None,
  captions: Sequence[str] | None = None,
  *,
  class_names: Sequence[str] = (),
  name: str = 'arrays',
) -> Dataset:
  """A dataset of arrays.

  Args:
    images: float [n, height, width, channels] in [-1, 1]; `data.to_float(images)` makes them of uint8.
    labels: integers from 0 on, one an image.
    captions: texts, one an image.
    class_names: names of the labels; their numbers when empty.
    name: name of the dataset, for messages.

  Raises:
    ValueError: images of another dtype, shape or range, labels beyond the classes, or other lengths.
  """
  images = np.asarray(images)
  _check_images(images, name)
  fields: dict[str, np.ndarray] = {'image': images.astype(np.float32, copy=False)}
  if labels is not None:
    labels = np.asarray(labels)
    if labels.dtype.kind not in 'iu' or labels.shape != images.shape[:1]:
      raise ValueError(f'{name}: labels are {labels.dtype} {list(labels.shape)}; wanted integers [{len(images)}]')
    class_names = tuple(class_names) or _classes(labels, name)
    if labels.min() < 0 or labels.max() >= len(class_names):
      raise ValueError(
        f'{name}: labels go from {labels.min()} to {labels.max()}; with {len(class_names)} classes they go from 0 to '
        f'{len(class_names) - 1}'
      )
    fields['label'] = labels.astype(np.int32)
  elif class_names:
    raise ValueError(f'{name}: there are {len(class_names)} class names and no labels')
  if captions is not None:
    wrong = [caption for caption in captions if not isinstance(caption, str)]
    if isinstance(captions, str) or len(captions) != len(images) or wrong:
      got = f'{wrong[0]!r} among them' if wrong else f'{len(captions)}' if not isinstance(captions, str) else 'one str'
      raise ValueError(f'{name}: wanted {len(images)} captions, each a str; got {got}')
    fields['caption'] = np.asarray(captions, object)
  digest = hashlib.sha256(repr((images.shape, class_names)).encode())
  for field, values in fields.items():
    digest.update(field.encode())
    digest.update(np.ascontiguousarray(values).data if field != 'caption' else repr(list(values)).encode())

  def decode(i: int) -> Record:
    record = {'image': fields['image'][i]}
    record |= {'label': fields['label'][i]} if 'label' in fields else {}
    return record | ({'caption': str(fields['caption'][i])} if 'caption' in fields else {})

  return Dataset(name, 'train', range(len(images)), decode, digest.hexdigest(), tuple(class_names))


def _classes(labels: np.ndarray, name: str) -> tuple[str, ...]:
  try:
    return classes_of(np.unique(labels).tolist())
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


def _check_images(images: np.ndarray, name: str) -> None:
  got = f'{name}: images are {images.dtype} {list(images.shape)}'
  if images.ndim != 4 or not images.size:
    raise ValueError(f'{got}; wanted [n, height, width, channels]')
  if images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3, 4):
    raise ValueError(f'{got}; wanted channels last, [n, height, width, channels]: np.moveaxis(images, 1, -1)')
  if images.dtype.kind != 'f':
    raise ValueError(f'{got}; wanted float in [-1, 1]: data.to_float(images) makes them of uint8')
  low, high = float(images.min()), float(images.max())
  if not (low >= -1.001 and high <= 1.001):  # also NaN
    raise ValueError(f'{name}: images lie in [{low:.4g}, {high:.4g}]; wanted [-1, 1], such as images / 127.5 - 1')
  if low >= 0 and high > low:
    raise ValueError(f'{name}: images lie in [{low:.4g}, {high:.4g}], none below 0; wanted [-1, 1], as 2 * images - 1')


def npz_dataset(path: pathlib.Path, split: str = 'train', *, size: int | None = None) -> Dataset:
  """The images of an .npz file, and its labels and captions if any, read as they are asked for.

  Args:
    path: an .npz with `arr_0`, uint8 n h w c.
    split: 'train', which is all of them.
    size: crops and resizes to size x size as ADM does.
  """
  if split != 'train':
    raise NoSuchSplit(f'{path} has no split {split!r}; it has train')
  arrays = read_npz(path)
  labels, captions = arrays.labels, arrays.captions
  names = () if labels is None else _classes(labels, str(path))

  def decode(i: int) -> Record:
    record: Record = {'image': to_float(np.asarray(arrays.images[i]))}
    record |= {} if labels is None else {'label': np.int32(labels[i])}
    return record | ({} if captions is None else {'caption': str(captions[i])})

  fingerprint = hashlib.sha256(arrays.checksum.encode()).hexdigest()
  dataset = Dataset(f'npz:{path}', split, range(len(arrays.images)), decode, fingerprint, names)
  check_record(dataset, dataset.read(0))
  return dataset if size is None else at_resolution(dataset, size)
