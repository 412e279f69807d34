"""A dataset of an autoencoder's latents, of images that were encoded once: `jaxgen data encode`.

A record is {'image': float16 h w z, 'std': float16 h w z, 'label': ...}: the mean and the standard deviation of the
latents before their scaling (models/latents.py), or one sample and no 'std'. It is not the variance, of which float16
has not the smallest values. A mirrored copy of an image is a record of its own. The folder keeps the hash of the
autoencoder, and is opened for that one alone.

It is written shard by shard (data/shard_writer.py), and a killed run resumes at the shards that are missing.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxgen.data.dataset import Dataset, Record, default_data_dir
from jaxgen.data.job import ALONE, Job, Numbered
from jaxgen.data.recipe import opened
from jaxgen.home import mirror

VERSION = '2.0.0'
FIELDS = ('image', 'std')
TEXT = 'caption'


def latents(
  name: str, split: str = 'train', *, autoencoder: str, data_dir: str | pathlib.Path | None = None
) -> Dataset:
  """Opens a dataset of latents.

  Args:
    name: the name that `jaxgen data encode` was given, such as 'emoji32_latents'.
    split: a split as TFDS writes it.
    autoencoder: the hash of the one in use.
    data_dir: the folder of prepared datasets, also gs://BUCKET/FOLDER.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: it is of another autoencoder, or has no such split.
  """
  path = folder(name, data_dir)
  if not path.exists():
    raise FileNotFoundError(
      f'there are no latents {name} in {path.parent.parent}; make them with '
      f'`jaxgen data encode --data DATA --autoencoder FOLDER --name {name}`'
    )
  from jaxgen.data import tfds_builder

  builder = tfds_builder.open_folder(path)
  metadata = dict(builder.info.metadata)
  found = metadata.get('autoencoder')
  if found != autoencoder:
    raise ValueError(
      f'the latents in {path} are of the autoencoder {str(found)[:12]}, and this run decodes with '
      f'{autoencoder[:12]}; encode the images again with that one, or set the config to the other'
    )
  identity = json.dumps({'split': split} | metadata, sort_keys=True)
  return Dataset(
    name=name,
    split=split,
    source=tfds_builder.data_source(builder, split, image_field=None),
    decode=_decode,
    fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
    class_names=tfds_builder.class_names(builder, 'label'),
  )


def folder(name: str, data_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """Where the dataset is on this machine, brought from a bucket if it is in one."""
  return opened(mirror(data_dir or default_data_dir()) / name / VERSION)


def _decode(record: Record) -> Record:
  def value(name: str) -> np.ndarray | np.int32 | str:
    if name in FIELDS:
      return np.asarray(record[name], np.float32)
    return record[name].decode() if isinstance(record[name], bytes) else np.int32(record[name])

  return {name: value(name) for name in record}


def are_there(path: pathlib.Path, identity: Mapping[str, Any]) -> bool:
  """Whether the latents of this identity are in a folder already.

  Raises:
    ValueError: it holds others.
  """
  if not path.exists():
    return False
  from jaxgen.data import tfds_builder

  found = dict(tfds_builder.open_folder(path).info.metadata)
  different = [key for key, value in identity.items() if found.get(key) != str(value)]
  if different:
    raise ValueError(
      f'{path.parent} holds other latents ({", ".join(sorted(different))} differ); '
      'give these another --name, or delete that folder'
    )
  return True


def write(
  path: pathlib.Path,
  splits: Mapping[str, Numbered],
  *,
  like: Record,
  identity: Mapping[str, Any],
  class_names: tuple[str, ...] = (),
  job: Job = ALONE,
  report: Callable[[str], None] = lambda message: None,
) -> None:
  """Writes a dataset of latents.

  Args:
    path: its `folder`.
    splits: what makes the records by number.
    like: a record of the same fields and shapes.
    identity: everything that the latents depend on, with the hash of the 'autoencoder'. Shards of another identity
      are deleted.
    class_names: the labels' names.
    job: processes that share the work.
    report: called with the progress.
  """
  from jaxgen.data import shard_writer, tfds_builder

  shapes = {name: like[name].shape for name in FIELDS if name in like}
  features = tfds_builder.arrays(shapes, class_names, (TEXT,) if TEXT in like else ())
  metadata = {key: str(value) for key, value in identity.items()}
  layout = tfds_builder.Layout(f'latents of {identity.get("data", "images")}', '', features, metadata)
  shard_writer.write(path, layout, splits, identity=json.dumps(metadata, sort_keys=True), job=job, report=report)
