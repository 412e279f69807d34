"""Images in Parquet files, as Hugging Face stores datasets: `parquet:PATH` is prepared once, cropped and resized.

The image is a column of bytes, or of structs with `bytes`; the label is a column of integers or strings, whose names
the file's own metadata may hold; the caption is a column of text. Parquet is read in order only, by row groups, so the
records are written again as ArrayRecord files: the row groups are shuffled, and the rows of each stay together. Needs
pyarrow: `pip install 'jaxgen[parquet]'`.
"""

import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.dataset import Record
from jaxgen.data.fields import CAPTIONS, LABELS, Label, caption_of, classes_of, label_of
from jaxgen.data.job import ALONE, Job, Numbered
from jaxgen.data.patterns import by_split, files
from jaxgen.data.pictures import Picture, numbered
from jaxgen.data.recipe import Recipe, folder, opened, prepare, read_origin

VERSION = '2.0.0'


class _Columns(NamedTuple):
  image: str
  label: str | None
  caption: str | None
  names: tuple[str, ...]  # names of the labels, where the file has them


def prepare_parquet(
  pattern: str,
  *,
  size: int,
  data_dir: str | pathlib.Path | None = None,
  progress: bool = False,
  overwrite: bool = False,
  job: Job = ALONE,
) -> pathlib.Path:
  """Writes the images of Parquet files as a dataset, unless that is there already; returns its folder.

  Args:
    pattern: a file, a folder of them, or a pattern such as `data/train-*.parquet`.
    size: height and width.
    data_dir: the folder of prepared datasets.
    progress: whether to show a bar, in a terminal, and a line with the result.
    overwrite: makes it again where it is there already.
    job: processes that share the work.

  Raises:
    ValueError: pyarrow is missing, a file is damaged, or has no column of images.
  """
  paths = files(pattern, ending='.parquet')
  about = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
  origin = hashlib.sha256(repr((VERSION, size, about)).encode()).hexdigest()
  place = hashlib.sha256(str(pathlib.Path(pattern).expanduser().resolve()).encode()).hexdigest()[:6]
  recipe = Recipe(
    name=re.sub('[^a-z0-9]+', '_', f'parquet_{paths[0].stem}_{place}_{size}'.lower()),
    version=VERSION,
    about=f'images of {pattern}',
    license='that of the images',
    image_shape=(size, size, 3),
    examples=lambda _: {},
    origin=origin,
  )
  path = opened(folder(recipe, data_dir))
  if job.count == 1 and path.exists() and read_origin(path) == origin and not overwrite:
    return path  # without a look into the files; several processes decide together
  splits = by_split(paths)
  known = list(map(_columns, paths))
  columns = next((columns for columns in known if columns.names), known[0])  # one file may say the names for all
  names = columns.names or _label_names(paths, columns)
  if progress:
    numbers = ', '.join(
      f'{sum(_open(path).metadata.num_rows for path in its):,} {split}' for split, its in splits.items()
    )
    print(f'{pattern}: {numbers} images, {len(names) or "no"} classes', file=sys.stderr)
  recipe = recipe._replace(
    class_names=names,
    texts=('caption',) if columns.caption else (),
    examples=lambda _: {split: _numbered(its, columns, names, size) for split, its in splits.items()},
  )
  return prepare(recipe, data_dir=data_dir, progress=progress, overwrite=overwrite, job=job)


def _open(path: pathlib.Path) -> Any:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise ValueError("Parquet files are read by pyarrow, which is not here; pip install 'jaxgen[parquet]'") from error
  try:
    return parquet.ParquetFile(path)
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(f'{path} is no whole Parquet file: {error}') from error


def _columns(path: pathlib.Path) -> _Columns:
  import pyarrow.types as kinds

  schema = _open(path).schema_arrow
  holds_bytes = lambda kind: kinds.is_binary(kind) or kinds.is_large_binary(kind)  # noqa: E731
  images = [
    field.name
    for field in schema
    if holds_bytes(field.type) or (kinds.is_struct(field.type) and field.type.get_field_index('bytes') >= 0)
  ]
  if not images:
    raise ValueError(f'{path} has no column of image bytes; it has {", ".join(schema.names)}')
  columns = {name.lower(): name for name in reversed(schema.names)}
  image = next((name for name in images if name.lower() == 'image'), images[0])
  label = next((columns[name] for name in LABELS if name in columns), None)
  caption = next((columns[name] for name in CAPTIONS if name in columns), None)
  return _Columns(image, label, caption, _hugging_face_names(schema.metadata or {}, label))


def _hugging_face_names(metadata: Mapping[bytes, bytes], label: str | None) -> tuple[str, ...]:
  """Names of the labels as Hugging Face's metadata have them; none where they do not."""
  try:
    names = json.loads(metadata[b'huggingface'])['info']['features'][label]['names']
  except (KeyError, TypeError, ValueError, RecursionError):
    return ()
  return tuple(map(str, names)) if isinstance(names, list) else ()


def _label_names(paths: list[pathlib.Path], columns: _Columns) -> tuple[str, ...]:
  """Names of the labels from the values of all rows."""
  if columns.label is None:
    return ()
  known: set[Label | None] = set()
  try:
    for path in paths:
      for batch in _batches(path, columns=[columns.label]):
        known |= set(map(label_of, batch.column(0).to_pylist()))
    return classes_of(label for label in known if label is not None)
  except ValueError as error:
    raise ValueError(f'{paths[0]}, column {columns.label!r}: {error}') from error


def _batches(path: pathlib.Path, **options: Any) -> Iterator[Any]:
  """The rows of a file, some at a time.

  Raises:
    ValueError: the file is damaged.
  """
  file = _open(path)
  import pyarrow

  try:
    yield from file.iter_batches(**options)
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(f'{path} is damaged: {error}') from error


class _Block(NamedTuple):
  """A row group: its file, its number there, the number of its first row there, and how many rows it has."""

  path: pathlib.Path
  group: int
  first: int
  rows: int


def _numbered(paths: list[pathlib.Path], columns: _Columns, names: tuple[str, ...], size: int) -> Numbered:
  blocks = [block for path in paths for block in _blocks(path)]
  ends = np.cumsum([block.rows for block in blocks])
  reading: tuple[int, int, Iterator[Picture]] = -1, -1, iter(())  # block, number of the next picture, and its reader

  def picture(number: int) -> Picture:
    nonlocal reading
    block = int(np.searchsorted(ends, number, side='right'))
    begin = int(ends[block]) - blocks[block].rows
    if reading[0] != block or reading[1] > number:
      reading = block, begin, _pictures(blocks[block], columns, names)
    _, at, rows = reading
    for _ in range(at, number):  # a shard may begin in the middle of a block
      next(rows)
    reading = block, number + 1, rows
    return next(rows)

  return numbered(picture, int(ends[-1]) if blocks else 0, size=size, blocks=[block.rows for block in blocks])


def _blocks(path: pathlib.Path) -> Iterator[_Block]:
  metadata, first = _open(path).metadata, 0
  for group in range(metadata.num_row_groups):
    rows = metadata.row_group(group).num_rows
    if rows:
      yield _Block(path, group, first, rows)
    first += rows


def _pictures(block: _Block, columns: _Columns, names: tuple[str, ...]) -> Iterator[Picture]:
  wanted = [name for name in columns[:3] if name is not None]
  batches = _batches(block.path, batch_size=64, row_groups=[block.group], columns=wanted)
  rows = (row for batch in batches for row in batch.to_pylist())
  for number, row in enumerate(rows, block.first):
    fields: Record = {}
    where = f'{block.path} row {number}'
    try:
      if columns.label and names:
        fields['label'] = _number(label_of(row[columns.label]), names)
      if columns.caption:
        fields['caption'] = caption_of(row[columns.caption]) or ''
    except ValueError as error:
      raise ValueError(f'{where}: {error}') from error
    yield Picture(where, lambda image=row[columns.image]: _bytes(image), fields)


def _number(label: Label | None, names: tuple[str, ...]) -> int:
  if label is None:
    raise ValueError('it has no label, and others have')
  number = label if isinstance(label, int) else names.index(label) if label in names else -1
  if not 0 <= number < len(names):
    raise ValueError(f'the label is {label!r}, which is none of the {len(names)} classes')
  return number


def _bytes(image: Any) -> bytes:
  data = image.get('bytes') if isinstance(image, dict) else image
  if not data:
    raise ValueError('no bytes; a path to a file elsewhere is not followed')
  return data
