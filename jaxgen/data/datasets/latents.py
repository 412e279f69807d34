"""A dataset of an autoencoder's latents, of images that were encoded once: `jaxgen data encode`.

A record is {'image': float16 h w z, 'std': float16 h w z, 'label': ...}: the mean and the standard deviation of the
latents before their scaling (models/latents.py), or one sample and no 'std'. It is not the variance, of which float16
has not the smallest values. A mirrored copy of an image is a record of its own. The folder keeps the hash of the
autoencoder, and is opened for that one alone.

It is written in two steps, so that a killed run continues where it stopped: batches as files in `NAME.partial`, each
complete or not there, then all of them as TFDS's ArrayRecord files, in an order that TFDS's hash of their numbers
gives.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxgen.data.dataset import Dataset, Record, default_data_dir
from jaxgen.files import replacing, write_whole
from jaxgen.home import fetched, kept, mirror

VERSION = '1.0.0'
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
    source=tfds_builder.data_source(builder, split, image_field='image'),
    decode=_decode,
    fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
    class_names=tfds_builder.class_names(builder, 'label'),
  )


def folder(name: str, data_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """Where the dataset is on this machine, brought from a bucket if it is in one."""
  return fetched(mirror(data_dir or default_data_dir()) / name / VERSION)


def _decode(record: Record) -> Record:
  def value(name: str) -> np.ndarray | np.int32 | str:
    if name in FIELDS:
      return np.asarray(record[name], np.float32)
    return record[name].decode() if isinstance(record[name], bytes) else np.int32(record[name])

  return {name: value(name) for name in record}


class Writer:
  """Writes batches of latents, and the dataset when all are there.

  Batches are known by their number; `has` says which need not be made. Only one process may write.
  """

  def __init__(
    self,
    name: str,
    *,
    identity: Mapping[str, Any],
    batches: Mapping[str, int],
    class_names: tuple[str, ...] = (),
    data_dir: str | pathlib.Path | None = None,
  ):
    """
    Args:
      name: name of the dataset.
      identity: everything that the latents depend on, as JSON, with the hash of the 'autoencoder'. Batches of an
        earlier run with another identity are deleted.
      batches: how many there are of each split.
      class_names: the labels' names.
      data_dir: the folder of prepared datasets, also gs://BUCKET/FOLDER.
    """
    self.path = folder(name, data_dir)
    self._partial = self.path.parent.with_name(f'{name}.partial')
    self._identity, self.batches, self._class_names = dict(identity), dict(batches), class_names
    self._text = json.dumps(self._identity | {'batches': self.batches}, sort_keys=True)

  @property
  def done(self) -> bool:
    """Whether the dataset is there already, with this identity.

    Raises:
      ValueError: it is there with another.
    """
    if not self.path.exists():
      return False
    from jaxgen.data import tfds_builder

    found = dict(tfds_builder.open_folder(self.path).info.metadata)
    different = [key for key, value in self._identity.items() if found.get(key) != str(value)]
    if different:
      raise ValueError(
        f'{self.path.parent} holds other latents ({", ".join(sorted(different))} differ); '
        'give these another --name, or delete that folder'
      )
    return True

  def start(self) -> None:
    """Makes the folder of batches, an empty one unless an earlier run left one for the same identity."""
    noted = self._partial / 'identity.json'
    if not noted.exists() or noted.read_text() != self._text:
      shutil.rmtree(self._partial, ignore_errors=True)
      self._partial.mkdir(parents=True)
      write_whole(noted, self._text)

  def has(self, split: str, batch: int) -> bool:
    return self._file(split, batch).exists()

  def put(self, split: str, batch: int, arrays: dict[str, Any]) -> None:
    """Keeps a batch: 'image', perhaps 'std', 'label' and 'caption' (UTF-8, padded with zeros), of n rows each."""
    with replacing(self._file(split, batch)) as file:
      np.savez(file, **arrays)

  def finish(self) -> pathlib.Path:
    """Writes the dataset, and deletes the batches; returns its folder."""
    from jaxgen.data import tfds_builder

    split = next(iter(self.batches))
    with np.load(self._file(split, 0)) as arrays:
      shapes = {name: arrays[name].shape[1:] for name in FIELDS if name in arrays}
      texts = (TEXT,) if TEXT in arrays else ()
    tfds_builder.write_arrays(
      self.path.parent.name,
      VERSION,
      {split: self._examples(split) for split in self.batches},
      data_dir=self.path.parent.parent,
      about=f'latents of {self._identity.get("data", "images")}',
      shapes=shapes,
      class_names=self._class_names,
      texts=texts,
      metadata={key: str(value) for key, value in self._identity.items()},
    )
    shutil.rmtree(self._partial)
    return kept(self.path)

  def _examples(self, split: str) -> Iterator[Record]:
    for batch in range(self.batches[split]):
      with np.load(self._file(split, batch)) as file:
        arrays = dict(file)
      for row in range(len(arrays['image'])):
        yield {name: _plain(name, values[row]) for name, values in arrays.items()}

  def _file(self, split: str, batch: int) -> pathlib.Path:
    return self._partial / f'{split}-{batch:06}.npz'


def _plain(name: str, value: Any) -> Any:
  if name == TEXT:
    return value.tobytes().rstrip(b'\0').decode()
  return value if name in FIELDS else int(value)
