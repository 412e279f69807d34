"""Licences of the training data: which records may be used, and the provenance that a run records.

A record may carry 'licence' (an SPDX identifier), 'author' and 'source', as text. `allow` keeps the records of some
licences; one without a licence is out unless it is asked for. `provenance` is what a run's folder and an exported model
keep: how many records of which licence and source, the attributions that CC-BY asks for, and a hash of all records.
"""

import collections
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.dataset import Dataset, Record
from jaxgen.files import write_whole

OPEN = ('CC0-1.0', 'CC-BY-4.0', 'MIT')  # licences of the training data of jaxgen's own models
FIELDS = ('licence', 'author', 'source')


class Origin(NamedTuple):
  """Where a record comes from; '' where it does not say."""

  licence: str
  author: str
  source: str


class Chosen(Sequence):
  """Some records of a source, in order."""

  def __init__(self, source: Sequence[Any], numbers: Sequence[int]):
    self._source, self._numbers = source, np.asarray(numbers, np.int64)

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: Any) -> Any:
    return self._source[int(self._numbers[index])]


def allow(dataset: Dataset, licences: Sequence[str] = OPEN, *, unlicensed: bool = False) -> Dataset:
  """The records of a dataset that have one of the licences.

  Args:
    dataset: the records; each is looked at once.
    licences: SPDX identifiers, such as 'CC-BY-4.0'; case does not matter.
    unlicensed: whether a record that names no licence is kept.

  Raises:
    ValueError: no record is left; the message has the licences that there are.
  """
  wanted = {licence.lower() for licence in licences}
  found = [origin.licence for origin in origins(dataset)]
  numbers = [i for i, licence in enumerate(found) if (licence.lower() in wanted if licence else unlicensed)]
  if not numbers:
    counts = collections.Counter(licence or 'no licence' for licence in found).most_common(6)
    there = ', '.join(f'{licence} ({count:,})' for licence, count in counts)
    raise ValueError(
      f'no record of {dataset.name} ({dataset.split}) has one of the licences {", ".join(licences)}; there are {there}'
    )
  if len(numbers) == len(found):
    return dataset
  digest = hashlib.sha256(np.asarray(numbers, np.int64).tobytes()).hexdigest()
  return dataset._replace(
    source=Chosen(dataset.source, numbers), fingerprint=f'{dataset.fingerprint} licensed {digest[:16]}'
  )


def licensed(dataset: Dataset, *, licence: str, author: str, source: str) -> Dataset:
  """A dataset all of whose records are of one origin, which they do not name themselves."""
  origin = {'licence': licence, 'author': author, 'source': source}

  def decode(record: Any) -> Record:
    return dataset.decode(record) | origin

  return dataset._replace(decode=decode)


def are_named(dataset: Dataset) -> bool:
  """Whether the records name licences, as the first one says."""
  return bool(dataset.num_examples) and bool(_text(dataset.read(0).get('licence', '')))


def origins(dataset: Dataset) -> Iterator[Origin]:
  """The origin of each record, in order; a stored record's image is not decoded for it."""
  for number in range(dataset.num_examples):
    record = dataset.source[number]
    named = isinstance(record, Mapping) and 'licence' in record
    record = record if named else dataset.read(number)
    yield Origin(*(_text(record.get(field, '')) for field in FIELDS))


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def provenance(dataset: Dataset) -> dict[str, Any]:
  """The provenance of a model that was trained on the dataset, as JSON.

  Returns:
    'dataset', 'split', 'records'; counts of 'licences' and of 'sources'; 'attributions', one line each for every
    licence but CC0; 'hash', which changes with any record.
  """
  found = collections.Counter(origins(dataset))
  licences: collections.Counter = collections.Counter()
  sources: collections.Counter = collections.Counter()
  for origin, count in found.items():
    licences[origin.licence or 'no licence'] += count
    sources[origin.source or 'no source'] += count
  lines = sorted({_attribution(origin) for origin in found if origin.licence and origin.licence != 'CC0-1.0'})
  return {
    'dataset': dataset.name,
    'split': dataset.split,
    'records': dataset.num_examples,
    'licences': dict(licences.most_common()),
    'sources': dict(sources.most_common()),
    'attributions': lines,
    'hash': _hash(dataset),
  }


def _attribution(origin: Origin) -> str:
  author = f'; author: {origin.author}' if origin.author else ''
  return f'{origin.source or "an unnamed source"}{author}; {origin.licence}'


def _hash(dataset: Dataset) -> str:
  """Licences of the stored records, field by field; of their numbers where they are not stored as fields."""
  digest = hashlib.sha256(dataset.fingerprint.encode())
  for number in range(dataset.num_examples):
    record = dataset.source[number]
    if isinstance(record, Mapping):
      for name, value in sorted(record.items()):
        data = value if isinstance(value, bytes) else np.asarray(value).tobytes()
        digest.update(f'{name} {len(data)} '.encode() + data)
    else:
      digest.update(f'{record!r:.200}'.encode())
  return digest.hexdigest()


def write_provenance(path: str | os.PathLike, dataset: Dataset) -> None:
  """Writes `provenance.json` into a run's folder."""
  write_whole(os.fspath(path) + '/provenance.json', json.dumps(provenance(dataset), indent=1, ensure_ascii=False))
