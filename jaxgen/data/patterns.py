"""Files by a pattern, as WebDataset and shell users write it: `shard-{0000..0099}.tar`, `*.parquet`, a folder."""

import glob
import pathlib
import re
from collections.abc import Iterator, Sequence

from jaxgen.data.listing import SPLITS, open_tree

_BRACES = re.compile(r'\{([^{}]*)\}')
_RANGE = re.compile(r'(\d+)\.\.(\d+)')


def files(pattern: str, *, ending: str) -> list[pathlib.Path]:
  """The files that a pattern names, in its own order; sorted where it has a `*`, or is a folder.

  Raises:
    FileNotFoundError: there is none, or one that braces spell out is missing.
    ValueError: it is an address or a command.
  """
  if '://' in pattern or pattern.startswith('pipe:'):
    raise ValueError(f'{pattern} is no file of this machine; copy the files here, and name them or their folder')
  found = []
  for name in _expanded(pattern):
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
      found += [path / file.name for file in open_tree(path).files if file.name.lower().endswith(ending)]
    elif glob.has_magic(name) and not path.exists():
      found += sorted(pathlib.Path(file) for file in glob.glob(str(path), recursive=True))
    elif path.is_file():
      found.append(path)
    else:
      raise FileNotFoundError(f'there is no file {path}')
  if not found:
    raise FileNotFoundError(f'{pattern} names no {ending} file')
  return found


def _expanded(pattern: str) -> Iterator[str]:
  """`a{0..2}` is a0, a1, a2; `{a,b}` is a, b."""
  braces = _BRACES.search(pattern)
  if braces is None:
    yield pattern
    return
  span = _RANGE.fullmatch(braces[1])
  if span:
    first, last = span.groups()
    if int(last) - int(first) > 10**6:
      raise ValueError(f'{pattern} names over a million files')
    choices = [f'{number:0{len(first)}}' for number in range(int(first), int(last) + 1)]
  else:
    choices = braces[1].split(',')
  for choice in choices:
    yield from _expanded(f'{pattern[: braces.start()]}{choice}{pattern[braces.end() :]}')


def by_split(paths: Sequence[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
  """Files whose own name or folder says train, test and the like, by that; all are 'train' unless each says one."""
  known = {name: split for split, names in SPLITS.items() for name in names}
  splits: dict[str, list[pathlib.Path]] = {}
  for path in paths:
    words = [*re.split('[^a-z]+', path.stem.lower()), path.parent.name.lower()]
    split = next((known[word] for word in words if word in known), None)
    if split is None:
      return {'train': list(paths)}
    splits.setdefault(split, []).append(path)
  return splits if 'train' in splits else {'train': list(paths)}
