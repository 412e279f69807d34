"""Reads and writes safetensors files as flat dictionaries of numpy arrays, bfloat16 included."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from jaxgen.files import in_bucket
from jaxgen.pretrained import bucket


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The arrays of a file by name.

  Raises:
    ValueError: the file is damaged or no safetensors file.
  """
  place = bucket.here(path)
  try:
    with safetensors.safe_open(place.path, framework='np') as file:
      return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} cannot be read as a safetensors file: {error}; fetch it again') from error


class Stored:
  """A tensor in a file: its shape, and its values for whoever asks numpy for an array of it."""

  def __init__(self, file: bucket.Here, name: str, shape: tuple[int, ...]):
    self._file, self._name, self.shape = file, name, shape

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    # The file is opened for each tensor, since the pages of one that stays open count as this process's memory.
    with safetensors.safe_open(self._file.path, framework='np') as file:
      return np.asarray(file.get_tensor(self._name), dtype)


def lazily(path: str | os.PathLike) -> dict[str, Stored]:
  """The tensors of a file by name, each read when it is used: memory holds one at a time.

  Raises:
    ValueError: the file is damaged or no safetensors file.
  """
  place = bucket.here(path)
  try:
    with safetensors.safe_open(place.path, framework='np') as file:
      return {name: Stored(place, name, tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} cannot be read as a safetensors file: {error}; fetch it again') from error


def metadata(path: str | os.PathLike) -> dict[str, str]:
  """The text that a file carries beside its tensors.

  Raises:
    ValueError: the file is damaged or no safetensors file.
  """
  place = bucket.here(path)
  try:
    with safetensors.safe_open(place.path, framework='np') as file:
      return file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} cannot be read as a safetensors file: {error}; fetch it again') from error


def stored(path: str | os.PathLike, *, name: str) -> tuple[dict[str, np.ndarray], str]:
  """The tensors of a file that `jaxgen weights get NAME` stored, and their hash.

  Raises:
    FileNotFoundError: the file is not there.
    ValueError: it is damaged.
  """
  if not epath.Path(path).exists():
    raise FileNotFoundError(f'{path} does not exist; get the weights with `jaxgen weights get {name}`')
  remedy = f'delete it and `jaxgen weights get {name}`'
  try:
    tensors, noted = read(path), metadata(path).get('hash')
  except ValueError as error:
    raise ValueError(f'{path} is damaged ({error.__cause__}); {remedy}') from error
  if noted is None or content_hash(tensors) != noted:
    raise ValueError(f'{path} is damaged (wrong hash); {remedy}')
  return tensors, noted


def content_hash(tensors: Mapping[str, np.ndarray]) -> str:
  """A hash of tensors by name, without those of a classifier, `fc`, which not all files of an Inception have."""
  digest = hashlib.sha256()
  for name in sorted(tensors):
    if not name.startswith('fc.'):
      digest.update(f'{name} {tensors[name].dtype} {tensors[name].shape}\n'.encode())
      digest.update(np.ascontiguousarray(tensors[name]).data)
  return digest.hexdigest()


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], *, metadata: Mapping[str, str]) -> None:
  """Writes a file that is complete or absent, whenever the process is killed."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=None if in_bucket(path) else path.parent, prefix=f'.{path.name}.')
  os.close(handle)
  try:
    contiguous = {name: np.asarray(array, order='C') for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, temporary, metadata=dict(metadata))
    bucket.move(temporary, path)
  except safetensors.SafetensorError as error:
    raise OSError(f'{path} cannot be written: {error}') from error
  finally:
    Path(temporary).unlink(missing_ok=True)
