"""Any dataset that TFDS itself knows or has prepared, read as a data source.

It must be in the ArrayRecord format, which can be read in any order. Most of TFDS's own builders need TensorFlow to
prepare a dataset; none is needed to read it.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxgen.data.dataset import Dataset, Record, default_data_dir
from jaxgen.data.job import ALONE, Job
from jaxgen.data.recipe import alone, decode

_SECONDS = 10  # until a server counts as out of reach

if TYPE_CHECKING:
  import tensorflow_datasets as tfds


def tfds_dataset(
  name: str,
  split: str = 'train',
  *,
  size: int | None = None,
  image: str = 'image',
  label: str | None = 'label',
  caption: str | None = None,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens a dataset of TFDS.

  Args:
    name: a name as `tfds.load` takes it: 'NAME', 'NAME/CONFIG', 'NAME/CONFIG:VERSION'.
    split: a split as TFDS writes it.
    size: crops and resizes to size x size as ADM does; None where all images have one size already.
    image: name of the image field, `image` in the batch.
    label: name of the label field, `label` in the batch; None for none.
    caption: name of a text field, `caption` in the record; None for none.
    data_dir: where it is prepared; `default_data_dir()`, then TFDS's own folder, when None.

  Raises:
    FileNotFoundError: it is not prepared.
    ValueError: it cannot be read at random, or lacks a field or the split.
  """
  from jaxgen.data import tfds_builder

  builder = _find(name, data_dir)
  names = ((image, 'image'), (label, 'label'), (caption, 'caption'))
  fields = {field: name for field, name in names if field is not None}
  features = dict(builder.info.features)
  missing = sorted(fields.keys() - features.keys())
  if missing:
    raise ValueError(
      f'{name} has no field {missing[0]!r}; it has {", ".join(sorted(features))}: say which are the image, label '
      '(or None) and caption'
    )
  channels = 1 if features[image].shape[-1] == 1 else 3

  def read(record: Record) -> Record:
    wanted = {field: record[field] for field in fields}
    return {fields[field]: value for field, value in decode(wanted, image=image, channels=channels, size=size).items()}

  return Dataset(
    name=name,
    split=split,
    source=tfds_builder.data_source(builder, split, image_field=image),
    decode=read,
    fingerprint=_fingerprint(builder, split, size, fields),
    class_names=tfds_builder.class_names(builder, label) if label else (),
  )


def tfds_fields(name: str, *, data_dir: str | pathlib.Path | None = None) -> dict[str, str | None]:
  """Names of the image, label and caption fields of a prepared dataset, as options of `tfds_dataset`.

  The field of that name, else the first of that kind; None where there is no label or caption.
  """
  import tensorflow_datasets as tfds

  features = dict(_find(name, data_dir).info.features)
  of_kind = lambda kind: [field for field, feature in features.items() if isinstance(feature, kind)]  # noqa: E731
  images, labels, texts = map(of_kind, (tfds.features.Image, tfds.features.ClassLabel, tfds.features.Text))
  return {
    'image': 'image' if 'image' in features or not images else images[0],
    'label': 'label' if 'label' in labels else next(iter(labels), None),
    'caption': next((field for field in ('caption', 'text') if field in texts), None),
  }


def prepare_tfds(
  name: str,
  *,
  data_dir: str | pathlib.Path | None = None,
  progress: bool = False,
  overwrite: bool = False,
  job: Job = ALONE,
) -> pathlib.Path:
  """Downloads and prepares a dataset with TFDS's own builder, as ArrayRecord files.

  TFDS's builders make their records one after the other, so that one process of a job does it, and the others wait.

  Raises:
    ValueError: TFDS knows no such dataset, or its builder needs TensorFlow, which is not installed.
  """
  import tensorflow_datasets as tfds

  from jaxgen.data.tfds_builder import whole_or_nothing

  directory = pathlib.Path(data_dir or default_data_dir()).expanduser()
  tfds.display_progress_bar(progress)
  mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS if overwrite else tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
  try:
    with _without_warnings():
      builder = _builder(name, data_dir=directory, file_format='array_record')
      prepared = builder.is_prepared()
    if job.index > 0:
      job.meet(f'the preparation of {name}')
      return pathlib.Path(builder.data_dir)
    if not prepared or overwrite:
      _check_network(name, list(builder.url_infos))
    with alone(pathlib.Path(builder.data_dir)), whole_or_nothing(directory / name.partition(':')[0]):
      builder.download_and_prepare(download_config=tfds.download.DownloadConfig(download_mode=mode))
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(f'neither jaxgen nor TFDS knows a dataset {name!r}; see `jaxgen data list`') from error
  except ImportError as error:
    raise ValueError(
      f"TFDS's builder of {name} needs {error.name or error}; where that is installed, run "
      f'`tfds build {name} --file_format=array_record --data_dir={directory}`'
    ) from error
  job.meet(f'the preparation of {name}')
  return pathlib.Path(builder.data_dir)


def _check_network(name: str, urls: list[str]) -> None:
  """Asks for the first of the files, because TFDS itself would try again for minutes.

  Raises:
    ValueError: its server cannot be reached.
  """
  url = next((url for url in urls if url.startswith('http')), None)
  if url is None:
    return
  try:
    with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=_SECONDS):
      pass
  except urllib.error.HTTPError:  # a server that answers; TFDS will say what it says
    pass
  except OSError as error:
    raise ValueError(
      f'{name} is downloaded from {url}, which cannot be reached ({error}); where there is a network, run '
      f'`jaxgen data prepare {name} --data-dir FOLDER`, and bring FOLDER here'
    ) from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
  """TFDS warns of each folder that it has looked for and that is no dataset yet."""
  log = logging.getLogger('absl')
  level = log.level
  log.setLevel(logging.ERROR)
  try:
    yield
  finally:
    log.setLevel(level)


def _builder(name: str, **options: Any) -> 'tfds.core.DatasetBuilder':
  """TFDS's builder.

  Raises:
    ValueError: the name is none, or there is no such config or version.
  """
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, **options)
  except tfds.core.DatasetNotFoundError:
    raise
  except (ValueError, AssertionError) as error:  # a name that TFDS cannot read; a version that it does not have
    why = str(error).strip().splitlines()[0].rpartition('}": ')[2]
    raise ValueError(f'dataset {name!r}: {why}; wanted NAME, NAME/CONFIG, NAME:1.0.0 or NAME/CONFIG:1.0.0') from error


def _find(name: str, data_dir: str | pathlib.Path | None) -> 'tfds.core.DatasetBuilder':
  """The prepared dataset's builder."""
  import tensorflow_datasets as tfds

  for place in [data_dir] if data_dir else [default_data_dir(), None]:
    try:
      with _without_warnings():
        builder = _builder(name, data_dir=place)
        if builder.is_prepared():
          return builder
    except (tfds.core.DatasetNotFoundError, ImportError):
      continue
  option = f' --data-dir {data_dir}' if data_dir else ''
  where = data_dir or f"{default_data_dir()} nor in TFDS's own folder"
  raise FileNotFoundError(f'dataset {name} is not in {where}; run `jaxgen data prepare {name}{option}` first')


def _fingerprint(builder: 'tfds.core.DatasetBuilder', split: str, size: int | None, fields: dict[str, str]) -> str:
  """Fingerprint of the files that TFDS has, as it keeps no hash of the records."""
  files = {name: [info.num_bytes, info.shard_lengths] for name, info in builder.info.splits.items()}
  parts = [builder.info.full_name, files, split, size, sorted(fields.items())]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
