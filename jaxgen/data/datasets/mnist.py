"""MNIST: 60,000 + 10,000 handwritten digits, 28 x 28 gray (LeCun et al., 1998, "Gradient-based learning applied to
document recognition").

Made by `jaxgen data prepare mnist --source FOLDER` from the four IDX files, as they are or with .gz.
"""

import pathlib

from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets import idx
from jaxgen.data.recipe import Examples, Recipe, folder, load


def mnist(split: str = 'train', *, data_dir: str | pathlib.Path | None = None) -> Dataset:
  """Opens MNIST; `jaxgen data prepare mnist` makes it."""
  return load(folder(RECIPE, data_dir), split)


def examples(source: pathlib.Path | None) -> Examples:
  hint = 'pass the folder with the four IDX files: `jaxgen data prepare mnist --source FOLDER`'
  if source is None:
    raise FileNotFoundError(f'mnist needs its original files; {hint}')
  return idx.examples(source, missing=hint)


RECIPE = Recipe(
  name='mnist',
  version='1.0.0',
  about='70,000 handwritten digits, 28x28 gray, 10 classes; from IDX files',
  license='CC-BY-SA-3.0',
  image_shape=(28, 28, 1),
  examples=examples,
  class_names=tuple('0123456789'),
)
