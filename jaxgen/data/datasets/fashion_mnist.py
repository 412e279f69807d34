"""Fashion-MNIST: 60,000 + 10,000 clothes, 28 x 28 gray, 10 classes (Xiao et al., 2017, https://arxiv.org/abs/1708.07747).

Made by `jaxgen data prepare fashion_mnist --source FOLDER` from the four IDX files, as they are or with .gz. Debian's
package `dataset-fashion-mnist` installs them where this looks when no folder is given.
"""

import pathlib

from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets import idx
from jaxgen.data.recipe import Examples, Recipe, folder, load

DEBIAN = pathlib.Path('/usr/share/datasets/fashion-mnist')
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
  hint = (
    "install Debian's dataset-fashion-mnist, or pass the folder with the four IDX files: "
    '`jaxgen data prepare fashion_mnist --source FOLDER`'
  )
  return idx.examples(source or DEBIAN, missing=hint)


RECIPE = Recipe(
  name='fashion_mnist',
  version='1.0.0',
  about="70,000 pieces of clothing, 28x28 gray, 10 classes; from IDX files (Debian's dataset-fashion-mnist)",
  license='MIT',
  image_shape=(28, 28, 1),
  examples=examples,
  class_names=CLASSES,
)
