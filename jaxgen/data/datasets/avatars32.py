"""avatars32: 12,000 avatars at 32 x 32 of twelve styles, a part of the package.

A half of what `jaxgen data prepare avatars --size 32` draws, so that the default run needs no other package: 10,000 in
`train`, 1,000 each in `test` and `seen` (see avatars.py). The styles are CC0-1.0 and CC-BY-4.0 (recoloured);
NOTICE.avatars32 beside this file names their authors. The images of a style lie side by side, which makes them small.
"""

import functools
import hashlib
import io
import json
import lzma
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.data.dataset import Dataset, NoSuchSplit, Record
from jaxgen.data.datasets import avatars
from jaxgen.data.datasets.avatars_styles import VOCABULARY
from jaxgen.data.image import to_float

FILE = pathlib.Path(__file__).parent / 'avatars32.npz.xz'
STYLES = avatars.DEFAULT.styles


def avatars32(split: str = 'train') -> Dataset:
  """Opens avatars32, which needs no preparation.

  Raises:
    NoSuchSplit: there is no such split.
  """
  if split not in avatars.SPLITS:
    raise NoSuchSplit(f'avatars32 has no split {split!r}; it has {", ".join(avatars.SPLITS)}')
  found = _arrays()
  return Dataset(
    name='avatars32',
    split=split,
    source=Records(np.flatnonzero(found['splits'] == avatars.SPLITS.index(split))),
    decode=_decode,
    fingerprint=hashlib.sha256(f'{split} {_digest()}'.encode()).hexdigest(),
    class_names=STYLES,
  )


class Records(Sequence):
  """Records of the file, by their numbers."""

  def __init__(self, numbers: np.ndarray):
    self._numbers = numbers

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: Any) -> Any:
    found, row = _arrays(), self._numbers[index]
    attributes = found['attributes'][row]
    style = VOCABULARY['style'][attributes[0]]
    about = {'label': STYLES.index(style), 'attributes': attributes.astype(np.int32)}
    return {'image': found['images'][row]} | about | _origins()[style]


def _decode(record: Record) -> Record:
  return record | {'image': to_float(record['image']), 'label': np.int32(record['label'])}


@functools.cache
def _digest() -> str:
  return hashlib.sha256(FILE.read_bytes()).hexdigest()


@functools.cache
def _arrays() -> dict[str, np.ndarray]:
  """The file's arrays; 37 MB, a second to read."""
  with np.load(io.BytesIO(lzma.decompress(FILE.read_bytes())), allow_pickle=False) as file:
    arrays = {name: file[name] for name in ('images', 'attributes', 'splits', 'origins')}
  return arrays | {'images': np.ascontiguousarray(arrays['images'].transpose(1, 2, 3, 0))}


@functools.cache
def _origins() -> dict[str, dict[str, str]]:
  return json.loads(str(_arrays()['origins']))


def pack(splits: dict[str, Dataset], path: pathlib.Path) -> None:
  """Writes the file from the prepared dataset: how the package's own was made.

  Args:
    splits: records of each split of `avatars(split, options=Options(size=32))`.
    path: the file to write.
  """
  rows = [
    (avatars.SPLITS.index(split), dataset.read(i))
    for split, dataset in splits.items()
    for i in range(dataset.num_examples)
  ]
  rows.sort(key=lambda row: int(row[1]['label']))
  origins = {row['style']: {name: row[name] for name in ('style', 'licence', 'author', 'source')} for _, row in rows}
  buffer = io.BytesIO()
  np.savez(
    buffer,
    images=np.stack([np.uint8(np.round((row['image'] + 1) * 127.5)) for _, row in rows]).transpose(3, 0, 1, 2),
    attributes=np.stack([row['attributes'] for _, row in rows]).astype(np.int8),
    splits=np.array([split for split, _ in rows], np.int8),
    origins=np.array(json.dumps(origins)),
  )
  path.write_bytes(lzma.compress(buffer.getvalue(), preset=6))
