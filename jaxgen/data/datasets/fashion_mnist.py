"""Fashion-MNIST: 60,000 + 10,000 clothes, 28 x 28 gray, 10 classes (Xiao et al., 2017, https://arxiv.org/abs/1708.07747).

Made by `jaxgen data prepare fashion_mnist --source FOLDER` from the four IDX files, as they are or with .gz. Debian's
package `dataset-fashion-mnist` installs them where this looks when no folder is given.
"""

import gzip
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.recipe import Examples, Recipe, folder, load

DEBIAN = pathlib.Path('/usr/share/datasets/fashion-mnist')
PREFIXES = {'train': 'train', 'test': 't10k'}
CLASSES = (
  'T-shirt/top',
  'Trouser',
  'Pullover',
  'Dress',
  'Coat',
  'Sandal',
  'Shirt',
  'Sneaker',
  'Bag',
  'Ankle boot',
)


def fashion_mnist(split: str = 'train', *, data_dir: str | pathlib.Path | None = None) -> Dataset:
  """Opens Fashion-MNIST; `jaxgen data prepare fashion_mnist` makes it."""
  return load(folder(RECIPE, data_dir), split)


def examples(source: pathlib.Path | None) -> Examples:
  place = source or DEBIAN
  return {
    split: _split(
      read_idx(_find(place, f'{prefix}-images-idx3-ubyte')),
      read_idx(_find(place, f'{prefix}-labels-idx1-ubyte')),
    )
    for split, prefix in PREFIXES.items()
  }


def read_idx(path: pathlib.Path) -> UInt8[np.ndarray, '...']:
  """Reads an IDX file of bytes: 0, 0, 8 (uint8), number of axes; each axis as a big-endian int32; the values.

  Raises:
    ValueError: it is not such a file, or is cut off.
  """
  try:
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
      data = file.read()
  except (EOFError, gzip.BadGzipFile) as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  if data[:3] != b'\x00\x00\x08' or len(data) < 4 + 4 * data[3]:
    raise ValueError(f'{path} is no IDX file of bytes: it starts with {data[:4].hex(" ")}')
  axes = data[3]
  shape = tuple(np.frombuffer(data, '>i4', count=axes, offset=4).tolist())
  values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
  if values.size != np.prod(shape):
    raise ValueError(f'{path} is cut off: {values.size} values for the shape {shape}')
  return values.reshape(shape)


def _find(place: pathlib.Path, name: str) -> pathlib.Path:
  for path in (place / name, place / f'{name}.gz'):
    if path.exists():
      return path
  raise FileNotFoundError(
    f"{place} has no {name} or {name}.gz; install Debian's dataset-fashion-mnist, or pass the folder with the four "
    'IDX files: `jaxgen data prepare fashion_mnist --source FOLDER`'
  )


def _split(images: UInt8[np.ndarray, 'n 28 28'], labels: UInt8[np.ndarray, 'n']) -> Iterator[Record]:
  for image, label in zip(images, labels, strict=True):
    yield {'image': image[..., None], 'label': int(label)}


RECIPE = Recipe(
  name='fashion_mnist',
  version='1.0.0',
  about="70,000 pieces of clothing, 28x28 gray, 10 classes; from IDX files (Debian's dataset-fashion-mnist)",
  license='MIT',
  image_shape=(28, 28, 1),
  examples=examples,
  class_names=CLASSES,
)
