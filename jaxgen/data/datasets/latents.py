"""A dataset of an autoencoder's latents, of images that were encoded once: `jaxgen data encode`.

A record is {'image': float16 h w z, 'std': float16 h w z, ...}: the mean and the standard deviation of the latents
before their scaling (models/latents.py), or one sample and no 'std'. It is not the variance: float16 cannot hold
its smallest values. Other fields of images may be latents too, 'NAME' and perhaps 'NAME_std'; 'text', 'text_mask' and
'pooled' are a text encoder's features of a caption; all else is unchanged. A mirrored copy of an image is a record of
its own. The folder keeps the hash of the autoencoder, and is opened for that one alone.

It is written shard by shard (data/shard_writer.py), and a killed run resumes at the shards that are missing.
"""

import functools
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.data.dataset import Dataset, Record, default_data_dir
from jaxgen.data.job import ALONE, Job, Numbered
from jaxgen.data.recipe import opened
from jaxgen.home import mirror
from jaxgen.typing import Report

VERSION = '2.0.0'
_NULLS = 'nulls.npz'  # features of the empty text


def deviation(name: str) -> str:
  """The field of the standard deviations of a field of latents."""
  return 'std' if name == 'image' else f'{name}_std'


def latents(
  name: str,
  split: str = 'train',
  *,
  autoencoder: str,
  scaled: bool = False,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens a dataset of latents.

  Args:
    name: the name that `jaxgen data encode` was given, such as 'emoji32_latents'.
    split: a split as TFDS writes it.
    autoencoder: the hash of the one in use.
    scaled: whether 'image' has to be stored scaled; `objectives.latent` wants it not to be.
    data_dir: the folder of prepared datasets, also gs://BUCKET/FOLDER.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: it is of another autoencoder, scaled otherwise, or has no such split.
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
  _, stored_scaled = json.loads(metadata.get('fields', '{}')).get('image', ['moments', False])
  if stored_scaled != scaled:
    has, wants = ('', ' not') if stored_scaled else (' not', '')
    raise ValueError(
      f'the images in {path} are{has} scaled, and this run wants them{wants} to be; encode them again with '
      f'`--field image=FORM{",scaled" if scaled else ""}`'
    )
  identity = json.dumps({'split': split} | metadata, sort_keys=True)
  return Dataset(
    name=name,
    split=split,
    source=tfds_builder.data_source(builder, split, image_field=None),
    decode=functools.partial(_decode, tfds_builder.dtypes(builder)),
    fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
    class_names=tfds_builder.class_names(builder, 'label'),
  )


def folder(name: str, data_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """Where the dataset is on this machine, brought from a bucket if it is in one."""
  return opened(mirror(data_dir or default_data_dir()) / name / VERSION)


def nulls(name: str, *, data_dir: str | pathlib.Path | None = None) -> dict[str, np.ndarray]:
  """Features of the empty text by entry of `cond`: the nulls of `objectives.conditioning.encoded`.

  Raises:
    FileNotFoundError: there is no such dataset, or it was encoded without a text encoder.
  """
  path = folder(name, data_dir) / _NULLS
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist; encode the dataset with --text-encoder FOLDER')
  with np.load(path) as file:
    return {entry: _value(entry, file[entry]) for entry in file}


def _decode(dtypes: Mapping[str, np.dtype], record: Record) -> Record:
  return {name: _value(name, value, dtypes.get(name)) for name, value in record.items()}


def _value(name: str, value: Any, dtype: np.dtype | None = None) -> Any:
  if isinstance(value, bytes | str):
    return value.decode() if isinstance(value, bytes) else value
  array = np.asarray(value, dtype)
  if name == 'label':
    return np.int32(array)
  return array.astype(np.float32) if array.dtype == np.float16 else array


def are_there(path: pathlib.Path, identity: Mapping[str, Any]) -> bool:
  """Whether the latents of this identity are in a folder already.

  Raises:
    ValueError: it holds others.
  """
  if not path.exists():
    return False
  from jaxgen.data import tfds_builder

  found = dict(tfds_builder.open_folder(path).info.metadata)
  different = [key for key, value in identity.items() if found.get(key, '') != str(value)]
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
  nulls: Mapping[str, np.ndarray] = {},
  job: Job = ALONE,
  report: Report = lambda message: None,
) -> None:
  """Writes a dataset of latents.

  Args:
    path: its `folder`.
    splits: what makes the records by number.
    like: a record of the same fields, shapes and dtypes.
    identity: everything that the latents depend on, with the hash of the 'autoencoder'; empty entries are left out.
      Shards of another identity are deleted.
    class_names: the labels' names.
    nulls: features of the empty text, by entry of `cond`.
    job: processes that share the work.
    report: called with the progress.
  """
  from jaxgen.data import shard_writer, tfds_builder

  features = tfds_builder.arrays(like, class_names)
  metadata = {key: str(value) for key, value in identity.items() if value != ''}
  files = {_NULLS: _npz(nulls)} if nulls else {}
  layout = tfds_builder.Layout(f'latents of {identity.get("data", "images")}', '', features, metadata, files)
  shard_writer.write(path, layout, splits, identity=json.dumps(metadata, sort_keys=True), job=job, report=report)


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
  file, entries = io.BytesIO(), dict[str, Any](arrays)
  np.savez(file, **entries)
  return file.getvalue()
