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
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2

from jaxgen.data.dataset import NoSuchSplit, Record
from jaxgen.data.fields import in_lines
from jaxgen.data.image import encode_png
from jaxgen.data.parallel import parallel_map
from jaxgen.data.shards import Part, Shards

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


class Layout(NamedTuple):
  """The description of a dataset.

  Attributes:
    about: one line.
    license: licence of the records.
    features: fields of a record.
    metadata: kept in the folder.
    files: other files of the folder, by name.
  """

  about: str
  license: str
  features: tfds.features.FeaturesDict
  metadata: Mapping[str, str]
  files: Mapping[str, bytes] = {}


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
    about, license, features, metadata, _ = layout(self._recipe)
    info: Any = tfds.core.DatasetInfo(
      builder=self,
      description=about,
      license=license,
      features=features,
      metadata=tfds.core.MetadataDict(dict(metadata)),
    )
    # TFDS knows nothing of this dataset, and would leave an empty folder in /tmp each time that it looks.
    info.initialize_from_bucket = lambda: None
    return info

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    return {split: self._generate_examples(split) for split in self._examples}

  def _example_writer(self) -> SortedWriter:
    return SortedWriter(file_format=self.info.file_format)

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Record]]:
    """Numbers the examples, encodes their images, and leaves the digest of all of them in the metadata."""
    recipe = self._recipe
    digest = hashlib.sha256(repr((recipe.name, recipe.version, recipe.class_names)).encode())
    examples = tqdm.tqdm(
      parallel_map(_with_png, cast(Iterator[Record], self._examples[split])),
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


def layout(recipe: 'Recipe') -> Layout:
  """The description of a recipe's dataset."""
  features: dict[str, tfds.features.FeatureConnector] = {}
  features['image'] = tfds.features.Image(shape=recipe.image_shape, encoding_format='png')
  if recipe.class_names:
    features['label'] = tfds.features.ClassLabel(names=in_lines(recipe.class_names))
  features |= {text: tfds.features.Text() for text in recipe.texts}
  features |= {name: tfds.features.Tensor(shape=shape, dtype=np.int32) for name, shape in recipe.integers.items()}
  metadata = ({ORIGIN: recipe.origin} if recipe.origin else {}) | dict(recipe.notes())
  return Layout(recipe.about, recipe.license, tfds.features.FeaturesDict(features), metadata)


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
  """Writes a dataset, DATA_DIR/NAME, within the block; leaves nothing behind when it fails.

  Raises:
    OSError: the disk is full; in one line, whatever library says it how.
  """
  try:
    with naming_a_full_disk(folder):
      yield
  except BaseException:
    for left in folder.rglob('incomplete.*'):
      shutil.rmtree(left, ignore_errors=True)
    raise


@contextlib.contextmanager
def naming_a_full_disk(folder: pathlib.Path) -> Iterator[None]:
  """Makes one OSError of a full disk, however a library words it."""
  try:
    yield
  except Exception as error:
    if 'No space left' in str(error):
      what = 'the disk is full, and the dataset is not there; free some space and give the same command again'
      raise OSError(errno.ENOSPC, what, os.fspath(folder)) from error
    raise


def arrays(like: Record, class_names: Sequence[str] = ()) -> tfds.features.FeaturesDict:
  """Fields of records of arrays, numbers and texts that are like a given one; `class_names` are those of a 'label'."""

  def feature(name: str, value: Any) -> tfds.features.FeatureConnector:
    if isinstance(value, str):
      return tfds.features.Text()
    if name == 'label' and class_names:
      return tfds.features.ClassLabel(names=in_lines(class_names))
    array = np.asarray(value)
    return tfds.features.Tensor(shape=array.shape, dtype=array.dtype, encoding='bytes' if array.ndim else 'none')

  return tfds.features.FeaturesDict({name: feature(name, value) for name, value in like.items()})


def serialized(features: tfds.features.FeaturesDict, record: Record) -> bytes:
  """A record as the bytes of a tf.train.Example, the same in every process."""
  return _in_order(features.serialize_example(record))


def shard_name(name: str, split: str, shard: int, of: int) -> str:
  return f'{name}-{split}.array_record-{shard:05}-of-{of:05}'


def write_info(
  folder: pathlib.Path, name: str, version: str, layout: Layout, shards: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
  """Writes what TFDS opens a folder of shards by; of each shard the 'records' and 'bytes' are wanted."""
  info = tfds.core.DatasetInfo(
    builder=tfds.core.dataset_info.DatasetIdentity(
      name=name, version=tfds.core.Version(version), data_dir=os.fspath(folder), module_name=__name__
    ),
    description=layout.about,
    license=layout.license,
    features=layout.features,
    metadata=tfds.core.MetadataDict(dict(layout.metadata)),
  )
  info.set_file_format('array_record')
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[shard['records'] for shard in several],
      num_bytes=sum(shard['bytes'] for shard in several),
    )
    for split, several in shards.items()
  ]
  info.set_splits(tfds.core.SplitDict(splits))
  info.write_to_directory(folder)


def open_folder(path: str | os.PathLike) -> tfds.core.DatasetBuilder:
  """The builder of a prepared dataset, made from its folder alone."""
  return tfds.builder_from_directory(path)


def data_source(builder: tfds.core.DatasetBuilder, split: str, *, image_field: str | None) -> Sequence[Any]:
  """Random access to the records of a split, with the image, if there is one, as encoded bytes."""
  name = builder.info.name
  try:
    decoders = {image_field: tfds.decode.SkipDecoding()} if image_field else None
    source = builder.as_data_source(split=split, decoders=decoders)
    files = builder.info.splits[split].file_instructions
    source.data_source = Shards(
      [Part(os.fspath(file.filename), file.skip, file.take, file.examples_in_shard) for file in files]
    )
    return source
  except NotImplementedError as error:
    raise ValueError(
      f'{name} in {builder.data_dir} is not in the ArrayRecord format, which alone is read in any order; prepare it '
      'in another folder with `tfds build --file_format=array_record`, or use `tfds convert_format`'
    ) from error
  except (ValueError, KeyError) as error:
    splits = ', '.join(builder.info.splits)
    raise NoSuchSplit(f'{name} has no split {split!r}; it has {splits} (slices as in train[:100])') from error


def dtypes(builder: tfds.core.DatasetBuilder) -> dict[str, np.dtype]:
  """Dtypes of the fields that are arrays; TFDS reads some scalars as Python's numbers."""
  features: dict[str, Any] = dict(builder.info.features)
  tensors = (name for name, it in features.items() if type(it) is tfds.features.Tensor)
  return {name: np.dtype(features[name].np_dtype) for name in tensors}


def class_names(builder: tfds.core.DatasetBuilder, field: str) -> tuple[str, ...]:
  """Names of a label's values; empty where there is no such label."""
  feature = dict(builder.info.features).get(field)
  return tuple(feature.names) if isinstance(feature, tfds.features.ClassLabel) else ()
