"""The only module that uses TFDS: writes a recipe's examples, and opens prepared datasets as data sources.

Nothing here needs TensorFlow: images are handed to TFDS as encoded bytes and taken back as they are.
"""

import contextlib
import errno
import hashlib
import io
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2

from jaxgen.data.dataset import NoSuchSplit, Record
from jaxgen.data.image import encode_png
from jaxgen.data.parallel import parallel_map

if TYPE_CHECKING:
  from jaxgen.data.recipe import Examples, Recipe

ORIGIN = 'origin'  # key of the metadata, beside those of the splits


class SortedWriter(tfds_writer.ExampleWriter):
  """Writes each record's fields in the order of their names.

  Protobuf leaves the order of a map's fields open, and every process has another one: the same dataset, written
  again, would have other bytes.
  """

  def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
    return super().write(path, ((key, _in_order(example)) for key, example in examples))


def _in_order(example: bytes) -> bytes:
  parsed = tf_example_pb2.Example.FromString(example)  # pyrefly: ignore[missing-attribute]
  return parsed.SerializeToString(deterministic=True)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder of any recipe.

  TFDS orders the records by a hash of their number, so that a slice such as train[90%:] is a fair sample.
  """

  def __init__(self, recipe: 'Recipe', examples: 'Examples', data_dir: pathlib.Path, *, progress: bool):
    self.name = recipe.name
    self.VERSION = tfds.core.Version(recipe.version)
    self._recipe, self._examples, self._progress = recipe, examples, progress
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    recipe = self._recipe
    features: dict[str, tfds.features.FeatureConnector] = {}
    features['image'] = tfds.features.Image(shape=recipe.image_shape, encoding_format='png')
    if recipe.class_names:
      features['label'] = tfds.features.ClassLabel(names=recipe.class_names)
    features |= {text: tfds.features.Text() for text in recipe.texts}
    features |= {name: tfds.features.Tensor(shape=shape, dtype=np.int32) for name, shape in recipe.integers.items()}
    return tfds.core.DatasetInfo(
      builder=self,
      description=recipe.about,
      license=recipe.license,
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(({ORIGIN: recipe.origin} if recipe.origin else {}) | dict(recipe.notes())),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    return {split: self._generate_examples(split) for split in self._examples}

  def _example_writer(self) -> SortedWriter:
    return SortedWriter(file_format=self.info.file_format)

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Record]]:
    """Numbers the examples, encodes their images, and leaves the digest of all of them in the metadata."""
    recipe = self._recipe
    digest = hashlib.sha256(repr((recipe.name, recipe.version, recipe.class_names)).encode())
    examples = tqdm.tqdm(
      parallel_map(_with_png, self._examples[split]),
      desc=f'{recipe.name} {split}',
      unit=' images',
      disable=None if self._progress else True,  # None: shown in a terminal only
    )
    for i, (example, png) in enumerate(examples):
      for name, value in sorted(example.items()):
        digest.update(f'{name} '.encode())
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else f'{value} '.encode())
      yield i, example | {'image': io.BytesIO(png)}
    self.info.metadata[split] = digest.hexdigest()


def _with_png(example: Record) -> tuple[Record, bytes]:
  return example, encode_png(example['image'])


def write(recipe: 'Recipe', examples: 'Examples', data_dir: pathlib.Path, *, progress: bool) -> None:
  """Writes every split of the recipe as ArrayRecord files; `progress` shows a bar in a terminal."""
  tfds.disable_progress_bar()
  # TFDS prints of downloads that do not happen.
  with contextlib.redirect_stdout(io.StringIO()), whole_or_nothing(data_dir / recipe.name):
    Builder(recipe, examples, data_dir, progress=progress).download_and_prepare()


@contextlib.contextmanager
def whole_or_nothing(folder: pathlib.Path) -> Iterator[None]:
  """Writing of a dataset, DATA_DIR/NAME, that leaves nothing behind when it fails.

  Raises:
    OSError: the disk is full; in one line, whatever library says it how.
  """
  try:
    yield
  except BaseException as error:
    for left in folder.rglob('incomplete.*'):
      shutil.rmtree(left, ignore_errors=True)
    if 'No space left' in str(error):
      what = 'the disk is full, and nothing of the dataset is kept; free some space and prepare it again'
      raise OSError(errno.ENOSPC, what, os.fspath(folder)) from error
    raise


class ArrayBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder of float16 arrays, with labels and texts perhaps; the arguments are those of `write_arrays`."""

  def __init__(
    self,
    name: str,
    version: str,
    examples: Mapping[str, Iterator[Record]],
    data_dir: pathlib.Path,
    *,
    about: str,
    features: dict[str, tfds.features.FeatureConnector],
    metadata: Mapping[str, str],
  ):
    self.name = name
    self.VERSION = tfds.core.Version(version)
    self._examples, self._about, self._features, self._metadata = examples, about, features, dict(metadata)
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self._about,
      features=tfds.features.FeaturesDict(self._features),
      metadata=tfds.core.MetadataDict(self._metadata),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    return {split: enumerate(examples) for split, examples in self._examples.items()}

  def _generate_examples(self) -> Iterator:
    raise AssertionError('the examples are given')

  def _example_writer(self) -> SortedWriter:
    return SortedWriter(file_format=self.info.file_format)


def write_arrays(
  name: str,
  version: str,
  examples: Mapping[str, Iterator[Record]],
  *,
  data_dir: pathlib.Path,
  about: str,
  shapes: Mapping[str, tuple[int, ...]],
  class_names: tuple[str, ...],
  texts: tuple[str, ...],
  metadata: Mapping[str, str],
) -> None:
  """Writes a dataset of arrays as ArrayRecord files in DATA_DIR/NAME/VERSION.

  Args:
    name, version: name and version of the dataset.
    examples: number of examples of each split.
    data_dir: the folder of prepared datasets.
    about: one line.
    shapes: shapes of the float16 arrays by field.
    class_names: names of the field 'label'; empty for no such field.
    texts: names of the fields that are text.
    metadata: kept in the folder.
  """
  features: dict[str, tfds.features.FeatureConnector] = {
    field: tfds.features.Tensor(shape=shape, dtype=np.float16) for field, shape in shapes.items()
  }
  if class_names:
    features['label'] = tfds.features.ClassLabel(names=class_names)
  features |= {text: tfds.features.Text() for text in texts}
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()), whole_or_nothing(data_dir / name):
    ArrayBuilder(
      name, version, examples, data_dir, about=about, features=features, metadata=metadata
    ).download_and_prepare()


def open_folder(path: str | os.PathLike) -> tfds.core.DatasetBuilder:
  """The builder of a prepared dataset, made from its folder alone."""
  return tfds.builder_from_directory(path)


def data_source(builder: tfds.core.DatasetBuilder, split: str, *, image_field: str) -> Sequence[Any]:
  """Random access to the records of a split, with the image as encoded bytes."""
  name = builder.info.name
  try:
    return builder.as_data_source(split=split, decoders={image_field: tfds.decode.SkipDecoding()})
  except NotImplementedError as error:
    raise ValueError(
      f'{name} in {builder.data_dir} is not in the ArrayRecord format, which alone is read in any order; prepare it '
      'in another folder with `tfds build --file_format=array_record`, or use `tfds convert_format`'
    ) from error
  except (ValueError, KeyError) as error:
    splits = ', '.join(builder.info.splits)
    raise NoSuchSplit(f'{name} has no split {split!r}; it has {splits} (slices as in train[:100])') from error


def class_names(builder: tfds.core.DatasetBuilder, field: str) -> tuple[str, ...]:
  """Names of a label's values; empty where there is no such label."""
  feature = dict(builder.info.features).get(field)
  return tuple(feature.names) if isinstance(feature, tfds.features.ClassLabel) else ()
