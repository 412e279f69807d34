"""Which config code may run: shipped configs, code this user has trained with, and what the command line names.

A config is Python, so loading one runs it. A run's folder names the config it was made with, and a folder may come
from anybody. Code that only the folder names runs when its digest is on record in $JAXGEN_HOME/trusted, where
`jaxgen train` puts the digest of every config that it was given. The digest covers the file and each local file that
it imports: others of its `configs` folder, and modules that lie beside it.

What was hashed is what runs: local modules are compiled from the bytes that were read, never from a `__pycache__`,
which may hold anything.
"""

import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import os
import pathlib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxgen.home import home

_PACKAGE = 'configs'


class Source(NamedTuple):
  path: pathlib.Path
  code: bytes


class Code(NamedTuple):
  """A config and the local modules that it imports.

  Attributes:
    module: name that the config is imported under.
    sources: file and bytes of each module, by its full name; the config is one of them.
  """

  module: str
  sources: Mapping[str, Source]

  @property
  def path(self) -> pathlib.Path:
    return self.sources[self.module].path

  @property
  def digest(self) -> str:
    """Digest of the contents and names of the files, not of their places."""
    each = {name: hashlib.sha256(source.code).hexdigest() for name, source in self.sources.items()}
    own = each.pop(self.module)
    return hashlib.sha256(json.dumps([own, sorted(each.items())]).encode()).hexdigest()


def read(path: pathlib.Path, *, shipped: Sequence[pathlib.Path], local: Sequence[pathlib.Path]) -> Code:
  """Reads a config file and the local modules that it imports, running nothing.

  Args:
    path: the file.
    shipped: folders of the configs that come with jaxgen. They are no local files, and hide `local` ones.
    local: other folders that `from configs import NAME` looks in.

  Raises:
    ValueError: a file is not Python.
  """
  path = path.resolve()
  own = [path.parent] if path.parent.name == _PACKAGE else []
  folders = [*own, *shipped, *(folder for folder in local if folder not in own)]
  # A file that has a shipped config's name is no part of the package: others that import the name mean the shipped one.
  hidden = any((folder / path.name).is_file() for folder in shipped)
  in_package = path.parent in (*own, *local) and not hidden
  module = f'{_PACKAGE}.{path.stem}' if in_package else f'config_file.{path.stem}'
  sources, to_do = {}, [(module, path)]
  while to_do:
    name, file = to_do.pop()
    if name in sources:
      continue
    sources[name] = Source(file, file.read_bytes())
    for wanted in _imports(sources[name]):
      to_do += [pair for pair in _local_files(wanted, path.parent, folders, shipped) if pair[1] != path]
  return Code(module, sources)


def _imports(source: Source) -> Iterator[str]:
  """Every module or name that a file imports, as `a.b.c`."""
  try:
    tree = ast.parse(source.code, str(source.path))
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise ValueError(f'{source.path} is no config: it is not Python ({error})') from error
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      package = '.'.join(part for part in (_PACKAGE if node.level else '', node.module or '') if part)
      yield from (f'{package}.{alias.name}' for alias in node.names)


def _local_files(
  name: str, beside: pathlib.Path, folders: Sequence[pathlib.Path], shipped: Sequence[pathlib.Path]
) -> list[tuple[str, pathlib.Path]]:
  """The local files that an import of `name` may load, with the names of their modules."""
  top, _, rest = name.partition('.')
  if top == _PACKAGE:
    stem = rest.partition('.')[0]
    folder = next((f for f in folders if stem and _module_at(f / stem)), None)
    return [] if folder is None or folder in shipped else _module_at(folder / stem, f'{_PACKAGE}.{stem}')
  found = _module_at(beside / top, top)
  return found if found and not _installed(top, beside) else []


def _module_at(place: pathlib.Path, name: str = '') -> list[tuple[str, pathlib.Path]]:
  """The files of the module or package at a path without its suffix."""
  file = place.with_name(f'{place.name}.py')
  if file.is_file():
    return [(name, file.resolve())]
  files = sorted(place.rglob('*.py')) if place.is_dir() else []
  parts = [(file.relative_to(place).with_suffix('').parts, file.resolve()) for file in files]
  return [('.'.join((name, *part)).removesuffix('.__init__'), file) for part, file in parts]


def _installed(top: str, beside: pathlib.Path) -> bool:
  """Whether an import finds a module elsewhere than beside a config."""
  if top in sys.stdlib_module_names or top == 'jaxgen':
    return True
  spec = importlib.util.find_spec(top)
  places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
  return any(place and beside not in pathlib.Path(place).resolve().parents for place in places)


class _Loader(importlib.abc.SourceLoader):
  """Compiles modules from bytes that were read before; finds no module but those."""

  def __init__(self, sources: Mapping[str, Source]):
    self.sources = sources

  def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
    if name not in self.sources:
      inside = any(other.startswith(f'{name}.') for other in self.sources) and name != _PACKAGE
      return importlib.machinery.ModuleSpec(name, None, is_package=True) if inside else None  # without an __init__
    package = self.sources[name].path.name == '__init__.py'
    return importlib.util.spec_from_loader(name, self, origin=str(self.sources[name].path), is_package=package)

  def get_filename(self, fullname: str) -> str:
    return str(self.sources[fullname].path)

  def get_data(self, path: str) -> bytes:
    return next(source.code for source in self.sources.values() if str(source.path) == str(path))


def open_package(folders: Sequence[pathlib.Path]) -> None:
  """Makes `configs` a package of these folders, without local modules of a config that was loaded before."""
  package = sys.modules.setdefault(_PACKAGE, types.ModuleType(_PACKAGE))
  package.__path__ = [str(folder) for folder in folders]
  ours = [finder for finder in sys.meta_path if isinstance(finder, _Loader)]
  for name in {name for finder in ours for name in finder.sources} & sys.modules.keys():
    if isinstance(getattr(sys.modules[name].__spec__, 'loader', None), _Loader):
      del sys.modules[name]
      if name.startswith(f'{_PACKAGE}.'):
        vars(package).pop(name.partition('.')[2], None)
  sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Loader)]


def run(code: Code) -> types.ModuleType:
  """Imports a config, from the bytes that its digest is of. Call `open_package` first."""
  loader = _Loader(code.sources)
  for name in code.sources:
    sys.modules.pop(name, None)  # a shipped config of the name of one that this one brings
    vars(sys.modules[_PACKAGE]).pop(name.partition('.')[2], None)
  sys.meta_path.insert(0, loader)  # pyrefly: ignore[bad-argument-type]
  spec = loader.find_spec(code.module)
  assert spec is not None
  module = importlib.util.module_from_spec(spec)
  module.__file__ = str(code.path)
  sys.modules[code.module] = module
  loader.exec_module(module)
  return module


def remember(code: Code) -> None:
  """Puts a config on record as this user's own. A record that cannot be written costs a warning."""
  try:
    folder = _record()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / code.digest).write_text(f'{code.path}\n')
  except (OSError, ValueError) as error:
    logging.warning('the config could not be put on record as one that you train with (%s)', error)


def is_known(code: Code) -> bool:
  return (_record() / code.digest).exists()


def _record() -> Any:
  from etils import epath

  return epath.Path(os.fspath(home())) / 'trusted'
