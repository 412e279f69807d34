"""What a config reads of its datasets while it is built, kept with a model, so that it opens where the data are not.

A config reads its datasets when it is built: names of classes, the shape of a picture, captions for a vocabulary.
`recorded` notes the records that are read; `replayed` answers from these notes for a dataset that is not here, which is
enough to sample and not to train. Of a record the notes hold labels, captions and other small fields. Pictures are not
kept: in their place stand arrays of NaN of the same shape, so that nothing can be taken for one.
"""

import contextlib
import contextvars
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxgen.data.dataset import Dataset, NoSuchSplit, Record
from jaxgen.files import read_json_object, write_whole

FILE = 'data.json'
_MOST = 5000  # records of a dataset that are noted
_LARGE = 64  # numbers of a row from which its values are not kept; those of pictures, of any size, are not

Open = Callable[[], Dataset | None]
Opener = Callable[[str, Open], Dataset | None]
_opener: contextvars.ContextVar[Opener | None] = contextvars.ContextVar('opener', default=None)


def opened(key: Sequence[Any], open_: Open) -> Dataset | None:
  """What `open_` opens, noted or replayed under a key of strings and numbers, where one of the two is asked for."""
  opener = _opener.get()
  return open_() if opener is None else opener(json.dumps(list(key)), open_)


@contextlib.contextmanager
def _with(opener: Opener) -> Iterator[None]:
  token = _opener.set(opener)
  try:
    yield
  finally:
    _opener.reset(token)


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, Any]]:
  """Notes what is read of datasets that are opened within; gives the notes, as JSON, which grow until it ends."""
  notes: dict[str, Any] = {}

  def opener(key: str, open_: Open) -> Dataset | None:
    try:
      dataset = open_()
    except NoSuchSplit as error:
      notes[key] = {'no_such_split': str(error)}
      raise
    if dataset is None:
      notes[key] = {}
      return None
    records: dict[str, Any] = {}
    notes[key] = {
      'name': dataset.name,
      'split': dataset.split,
      'num_examples': dataset.num_examples,
      'fingerprint': dataset.fingerprint,
      'class_names': list(dataset.class_names),
      'records': records,
    }

    def decode(row: tuple[int, Any]) -> Record:
      record = dataset.decode(row[1])
      if len(records) < _MOST:
        records[str(row[0])] = {name: _noted(value) for name, value in record.items()}
      return record

    return dataset._replace(source=_Numbered(dataset.source), decode=decode)

  with _with(opener):
    yield notes


@contextlib.contextmanager
def replayed(folder: str | os.PathLike) -> Iterator[None]:
  """Datasets that are not here are opened from the notes in a folder, if it has any."""
  notes = read_json_object(epath.Path(folder) / FILE)
  if notes is None:
    raise ValueError(f'{os.fspath(folder)}/{FILE} is damaged; export the model again')

  def opener(key: str, open_: Open) -> Dataset | None:
    try:
      return open_()
    except FileNotFoundError:
      if key not in notes:
        raise
      return _from_notes(notes[key], f'{os.fspath(folder)}/{FILE}')

  with _with(opener) if notes else contextlib.nullcontext():
    yield


def write(folder: str | os.PathLike, notes: Mapping[str, Any]) -> None:
  """Keeps notes in a model's folder."""
  write_whole(epath.Path(folder) / FILE, json.dumps(notes) + '\n')


class _Numbered(Sequence):
  """A source that gives a record with its number."""

  def __init__(self, source: Sequence[Any]):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: Any) -> tuple[int, Any]:
    return int(i), self._source[int(i)]


def _noted(value: Any) -> Any:
  """A field as JSON: a text, or an array with its values where it is small."""
  if isinstance(value, str):
    return value
  array = np.asarray(value)
  about = {'shape': list(array.shape), 'dtype': array.dtype.name}
  return about if array.ndim > 1 or array.size >= _LARGE else about | {'values': array.ravel().tolist()}


def _from_notes(notes: Any, where: str) -> Dataset | None:
  if not notes:
    return None
  if 'no_such_split' in notes:
    raise NoSuchSplit(notes['no_such_split'])
  try:
    records = {int(number): _read(fields) for number, fields in notes['records'].items()}
    names = tuple(map(str, notes['class_names']))
    size = int(notes['num_examples'])
    name, split, fingerprint = (str(notes[field]) for field in ('name', 'split', 'fingerprint'))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{where} is damaged ({error!r:.80}); export the model again') from error
  if not records:
    raise FileNotFoundError(f'{name} is not here, and {where} has no record of it')
  _say(f'{name} ({split}) is not here; what the model holds of it is used')
  known = sorted(records)

  def decode(number: int) -> Record:
    return dict(records[number] if number in records else records[known[number % len(known)]])

  return Dataset(name, split, range(size), decode, fingerprint, names)


@functools.cache
def _say(message: str) -> None:
  print(f'jaxgen: {message}', file=sys.stderr)


def _read(fields: Mapping[str, Any]) -> Record:
  record: Record = {}
  for name, value in fields.items():
    if isinstance(value, str):
      record[name] = value
    else:
      shape, dtype = tuple(map(int, value['shape'])), np.dtype(value['dtype'])
      if dtype.kind not in 'biuf' or np.prod(shape, dtype=object) > 1 << 26:
        raise ValueError(f'{name} is {dtype} {list(shape)}')
      unknown = np.nan if dtype.kind == 'f' else 0
      record[name] = (
        np.array(value['values'], dtype).reshape(shape) if 'values' in value else np.full(shape, unknown, dtype)
      )
  return record
