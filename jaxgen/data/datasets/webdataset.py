"""WebDataset: samples in .tar files, `000123.jpg` beside `000123.cls`, `.txt` or `.json`; `webdataset:PATTERN`.

The shards stay as they are. The first use walks through their headers once and keeps an index, where each image and
caption begins; the records can then be read in any order, which WebDataset itself cannot. The index is mapped, so it
takes no memory, and is made again when a shard has changed.
"""

import hashlib
import json
import os
import pathlib
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxgen.data.dataset import Dataset, NoSuchSplit, Record, default_data_dir
from jaxgen.data.fields import CAPTIONS, Label, caption_of, classes_of, decode_text, label_of
from jaxgen.data.image import MAX_BYTES, decode_image, image_endings, to_float
from jaxgen.data.listing import is_hidden
from jaxgen.data.patterns import by_split, files
from jaxgen.files import replacing, write_whole
from jaxgen.home import mirror

VERSION = 1
_COMPRESSED = {b'\x1f\x8b': 'gunzip', b'BZh': 'bunzip2', b'\xfd7zXZ': 'unxz', b'\x28\xb5\x2f\xfd': 'unzstd'}
_PLACE = [('offset', '<i8'), ('size', '<i4')]
_ROW = np.dtype([('shard', '<i4'), ('label', '<i4'), ('image', _PLACE), ('text', _PLACE), ('is_json', '?')])


def webdataset(
  pattern: str, split: str = 'train', *, size: int | None = None, data_dir: str | pathlib.Path | None = None
) -> Dataset:
  """Opens the samples of .tar files.

  Args:
    pattern: a file, a folder of them, or a pattern such as `shard-{0000..0099}.tar`.
    split: 'train' is all of it unless the names of the shards say train and test.
    size: crops and resizes to size x size as ADM does; None where all images have one size already.
    data_dir: the folder of prepared datasets, which also keeps the index.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a shard is damaged, or holds links or what is no sample.
  """
  splits = by_split(files(pattern, ending='.tar'))
  if split not in splits:
    raise NoSuchSplit(f'{pattern} has no split {split!r}; it has {", ".join(splits)}')
  paths = splits[split]
  key = hashlib.sha256(repr((VERSION, [_about(path) for path in paths])).encode()).hexdigest()
  place = mirror(data_dir or default_data_dir()) / 'webdataset' / f'{key[:32]}.npy'
  if not place.exists():
    _write(place, paths)
  rows = np.load(place, mmap_mode='r')
  about = json.loads(place.with_suffix('.json').read_text(encoding='utf-8'))

  def decode(record: Record) -> Record:
    image = to_float(decode_image(record['image'], size=size))
    text = {'caption': _caption(record['text'], record['is_json'])} if about['captions'] else {}
    label = {'label': np.int32(record['label'])} if about['class_names'] else {}
    return {'image': image, **label, **text}

  return Dataset(
    name=f'webdataset:{pattern}',
    split=split,
    source=Source(paths, rows),
    decode=decode,
    fingerprint=hashlib.sha256(f'{about["content"]} {size}'.encode()).hexdigest(),
    class_names=tuple(about['class_names']),
  )


class Source(Sequence):
  """Raw samples by number: the bytes of the image and of the text, and the label."""

  def __init__(self, paths: Sequence[pathlib.Path], rows: np.ndarray):
    self._paths, self._rows = paths, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: Any) -> Any:
    row = self._rows[int(index)]
    with self._paths[row['shard']].open('rb') as file:
      read = lambda place: os.pread(file.fileno(), place['size'], place['offset'])  # noqa: E731
      return {name: read(row[name]) for name in ('image', 'text')} | {
        'label': int(row['label']),
        'is_json': bool(row['is_json']),
      }


class _Sample(NamedTuple):
  image: tuple[int, int]
  text: tuple[int, int]
  is_json: bool
  label: Label | None


def _about(path: pathlib.Path) -> tuple[str, int, int]:
  about = path.stat()
  return str(path.resolve()), about.st_size, about.st_mtime_ns


def _write(place: pathlib.Path, paths: Sequence[pathlib.Path]) -> None:
  """Indexes all shards; both files are complete or absent."""
  rows: list[tuple] = []
  labels: list[Label | None] = []
  content = hashlib.sha256()
  for shard, path in enumerate(paths):
    if sys.stderr.isatty():
      print(f'\r\x1b[Kindexing {path} ({shard + 1} of {len(paths)})', end='', file=sys.stderr, flush=True)
    samples = list(_samples(path))
    content.update(f'{path.name} {path.stat().st_size} {samples}\n'.encode())
    rows += [(shard, -1, sample.image, sample.text, sample.is_json) for sample in samples]
    labels += [sample.label for sample in samples]
  if sys.stderr.isatty():
    print(file=sys.stderr)
  if not rows:
    raise ValueError(f'{paths[0]} holds no images ({", ".join(sorted(image_endings())[:8])}, ...)')
  index = np.array(rows, _ROW)
  names, index['label'] = _numbered(labels, paths[0])
  captions = bool(index['text']['size'].any())
  about = {'content': content.hexdigest(), 'class_names': names, 'captions': captions}
  place.parent.mkdir(parents=True, exist_ok=True)
  write_whole(place.with_suffix('.json'), json.dumps(about))
  with replacing(place) as file:
    np.save(file, index)


def _numbered(labels: Sequence[Label | None], where: pathlib.Path) -> tuple[list[str], np.ndarray]:
  """Names of the classes, and the number of each label; no names where no sample has one."""
  known = {label for label in labels if label is not None}
  if not known:
    return [], np.full(len(labels), -1)
  if None in labels:
    raise ValueError(f'{where} and the other shards have {labels.count(None)} samples without a label beside others')
  try:
    names = classes_of(known)
  except ValueError as error:
    raise ValueError(f'{where} and the other shards: {error}') from error
  number_of = {name: number for number, name in enumerate(names)}
  return list(names), np.array([number_of[str(label)] for label in labels])


def _samples(path: pathlib.Path) -> Iterator[_Sample]:
  """The samples of one shard that have an image.

  Raises:
    ValueError: the shard is damaged, compressed, or holds what is no plain file of its own.
  """
  endings, size = image_endings(), path.stat().st_size
  found: dict[str, dict[str, Any]] = {}
  try:
    with path.open('rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
      for member in tar:
        _check(path, member, size)
        if not member.isreg() or any(map(is_hidden, pathlib.PurePosixPath(member.name).parts)):
          continue
        folder, _, name = member.name.rpartition('/')
        key, _, suffix = name.partition('.')
        suffix = f'.{suffix.lower().rpartition(".")[2]}'
        place = (member.offset_data, member.size)
        sample = found.setdefault(f'{folder}/{key}', {})
        if suffix in endings:
          sample.setdefault('image', place)
        elif suffix == '.txt' or (suffix == '.json' and 'text' not in sample):
          sample |= {'text': place, 'is_json': suffix == '.json'}
        if suffix in ('.cls', '.json'):
          label = _label(_read(file, member), suffix)
          sample |= {} if label is None else {'label': label}
      if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError('it has no end')  # cut off between two members, which tarfile lets pass
  except tarfile.ReadError as error:
    with path.open('rb') as file:
      head = file.read(6)
    program = next((program for magic, program in _COMPRESSED.items() if head.startswith(magic)), None)
    why = f'it is compressed; unpack it with {program}' if program else f'{error}; fetch it again'
    raise ValueError(f'{path} is no whole .tar file: {why}') from error
  for sample in found.values():
    if 'image' in sample:
      text = sample.get('text', (0, 0))
      yield _Sample(sample['image'], text, sample.get('is_json', False), sample.get('label'))


def _check(path: pathlib.Path, member: tarfile.TarInfo, size: int) -> None:
  """Raises ValueError for a member that is not a plain file inside the shard."""
  if not (member.isreg() or member.isdir()) or member.sparse is not None:
    raise ValueError(f'{path}: {member.name!r} is a link or a device; a shard may hold plain files only')
  if member.name.startswith('/') or '..' in member.name.split('/'):
    raise ValueError(f'{path}: {member.name!r} points out of the shard')
  if member.offset_data + member.size > size:
    raise ValueError(f'{path} is no whole .tar file: it is cut off in {member.name!r}; fetch it again')
  if member.size > MAX_BYTES:
    raise ValueError(f'{path}: {member.name!r} has {member.size:,} bytes; at most {MAX_BYTES:,} are read')


def _read(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
  return os.pread(file.fileno(), member.size, member.offset_data)


def _label(data: bytes, suffix: str) -> Label | None:
  """A label from a .cls, or from `label` or `cls` of a .json; None for none."""
  if suffix == '.json':
    entry = _json(data)
    value = entry.get('label', entry.get('cls'))
    return None if isinstance(value, list | dict | bool) else label_of(value)
  text = decode_text(data, 'replace').strip()
  return int(text) if re.fullmatch('-?[0-9]+', text) else text or None


def _caption(data: bytes, is_json: bool) -> str:
  """A caption from a .txt, or from a field of a .json.

  Raises:
    ValueError: it is no text.
  """
  if not is_json:
    return decode_text(data, 'replace').strip()
  return next(filter(None, map(caption_of, map(_json(data).get, CAPTIONS))), '')


def _json(data: bytes) -> dict[str, Any]:
  try:
    entry = json.loads(decode_text(data, 'replace'))
  except (ValueError, RecursionError):
    return {}
  return entry if isinstance(entry, dict) else {}
