"""Configs from the command line: finding the file, and changing its fields.

`--config` takes the path of a config file or the bare name of one that comes with jaxgen, and each
`--config.FIELD=VALUE` changes one field of what its `get_config()` returns.
"""

import difflib
import importlib
import importlib.util
import json
import os
import pathlib
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any


def load_config(
  name: str | os.PathLike, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> tuple[Any, types.ModuleType]:
  """Loads a config and changes some of its fields.

  Args:
    name: a path such as `experiments/mine.py`, or a bare name such as `emoji_dit`.
    overrides: `{'steps': 100, 'model.width': 64}`, or arguments `['--config.steps=100']`.

  Returns:
    The config, a locked ConfigDict, and its module, which has `build(config)`.
  """
  module = find_config(name)
  for function in ('get_config', 'build'):
    if not callable(getattr(module, function, None)):
      raise ValueError(f'{module.__file__} is no config: it has no function {function}()')
  config = module.get_config().lock()
  if isinstance(overrides, Mapping):
    _set(config, overrides, str(name))
  else:
    _parse(config, list(overrides), str(name))
  return config, module


def record(config: Any, module: types.ModuleType) -> dict[str, Any]:
  """What config.json keeps of a config, enough for `load_run` to build it again."""
  return {
    'name': module.__name__.rpartition('.')[2],
    'file': None if module.__name__.startswith('configs.') else str(module.__file__),
    'config': config.to_dict(),
  }


def load_run(workdir: str | os.PathLike, overrides: Sequence[str] = ()) -> tuple[Any, types.ModuleType]:
  """The config that a run was made with, and its module; as `load_config`, from the run's folder."""
  from etils import epath

  from jaxgen.writer import flat

  path = epath.Path(workdir) / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f'{workdir} is not the folder of a run: it has no config.json')
  try:
    kept = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is damaged ({error}); write it again, as the same run of `jaxgen train` does') from error
  if not {'name', 'config'} <= kept.keys():
    raise ValueError(f'{path} names no config; the run was not started from one')
  name = kept.get('file') or kept['name']
  config, module = load_config(name)
  _set(config, flat(kept['config']), name)
  _parse(config, list(overrides), name)
  return config, module


def find_config(name: str | os.PathLike) -> types.ModuleType:
  """Imports a config; package `configs` becomes importable, so that a config can edit another."""
  folders = config_folders()
  package = sys.modules.setdefault('configs', types.ModuleType('configs'))
  package.__path__ = [str(folder) for folder in folders]
  text = os.fspath(name)
  if not text.endswith('.py') and os.sep not in text:
    if text in available_configs():
      return importlib.import_module(f'configs.{text}')
    raise FileNotFoundError(_not_found(text))
  path = pathlib.Path(text).resolve()
  if not path.is_file():
    raise FileNotFoundError(f'no config file {text}; {_choices(path.stem)}')
  if path.suffix != '.py':
    raise ValueError(f'{text} is no config: wanted a Python file, NAME.py')
  if path.parent in folders and path.stem in available_configs():
    return importlib.import_module(f'configs.{path.stem}')
  spec = importlib.util.spec_from_file_location(f'config_file.{path.stem}', path)
  assert spec is not None and spec.loader is not None, path
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def config_folders() -> list[pathlib.Path]:
  """Where bare names are looked up: the current folder, jaxgen's checkout, the installed configs."""
  checkout = pathlib.Path(__file__).resolve().parents[2]
  folders = [pathlib.Path.cwd(), checkout, pathlib.Path(sys.prefix) / 'share' / 'jaxgen']
  folders = [(folder / 'configs').resolve() for folder in folders]
  return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def available_configs() -> list[str]:
  """The bare names that `--config` takes."""
  names = {path.stem for folder in config_folders() for path in folder.glob('*.py')}
  return sorted(name for name in names if not name.startswith('_'))


def _not_found(name: str) -> str:
  hint = f' (for a file, write ./{name}.py)' if pathlib.Path(f'{name}.py').is_file() else ''
  return f'no config named {name!r}{hint}; {_choices(name)}'


def _choices(name: str) -> str:
  names = available_configs()
  close = difflib.get_close_matches(name, names, n=1)
  meant = f'did you mean {close[0]!r}? ' if close else ''
  where = ', '.join(names) if names else f'none, in any of {[str(folder) for folder in config_folders()]}'
  return f'{meant}available: {where}'


def _set(config: Any, overrides: Mapping[str, Any], name: str) -> None:
  """Sets fields from Python values."""
  for field, value in overrides.items():
    _check_field(config, field, name)
    try:
      config.update_from_flattened_dict({field: value})
    except TypeError:
      raise ValueError(_wrong_type(config, field, value)) from None


def _parse(config: Any, arguments: list[str], name: str) -> None:
  """Sets fields from `--config.FIELD=VALUE` arguments."""
  from absl import flags
  from ml_collections import config_flags

  for argument in arguments:
    if argument.startswith('--config.'):
      field = argument.removeprefix('--config.').split('=', 1)[0]
      _check_field(config, field, name)
      _check_type(config, field)
  values = flags.FlagValues()
  argv = ['jaxgen', *arguments]
  usage = 'a field of the config is set by --config.FIELD=VALUE'
  try:
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
    unused = values(argv)[1:]
  except flags.UnrecognizedFlagError as error:
    raise ValueError(f'unknown option --{error.flagname}; {usage}') from None
  except flags.IllegalFlagValueError as error:
    raise ValueError(_refused(config, arguments, str(error))) from None
  except flags.Error as error:
    raise ValueError(str(error)) from None
  if unused:
    raise ValueError(f'unexpected argument {unused[0]!r}; {usage}')


def _fields(config: Any, prefix: str = '') -> dict[str, tuple[type, Any]]:
  """Type and value of each field of a ConfigDict, by dotted name."""
  from ml_collections import ConfigDict

  fields = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      fields |= _fields(value, f'{prefix}{key}.')
    else:
      fields[f'{prefix}{key}'] = (config.get_type(key), value)
  return fields


def _check_field(config: Any, field: str, name: str) -> None:
  """Raises ValueError, saying what was meant, where there is no such field."""
  fields = _fields(config)
  if field in fields:
    return
  group = [known for known in fields if known.startswith(f'{field}.')]
  if group:
    raise ValueError(f'config field {field!r} is a group; set one of its fields: {", ".join(group)}')
  # A field may be misspelt, or be right with its group left out.
  last = {known.rpartition('.')[2]: known for known in reversed(fields)}
  close = difflib.get_close_matches(field, fields, n=1) or [
    last[match] for match in difflib.get_close_matches(field.rpartition('.')[2], last, n=1)
  ]
  hint = f'did you mean {close[0]!r}?' if close else f'it has: {", ".join(fields)}'
  raise ValueError(f'config {name} has no field {field!r}; {hint}')


def _check_type(config: Any, field: str) -> None:
  """Raises ValueError for fields that have no form on the command line."""
  kind = _fields(config)[field][0]
  if kind is type(None):
    raise ValueError(
      f'config field {field!r} is None, which tells no type to read a value as; '
      f'give it one in the config: config_dict.placeholder(int)'
    )
  if kind not in (bool, int, float, str, tuple):
    raise ValueError(
      f'config field {field!r} is a {kind.__name__}; '
      'on the command line only bool, int, float, str and tuple can be set'
    )


def _refused(config: Any, arguments: list[str], error: str) -> str:
  """absl's complaint about a value, in terms of the config."""
  for argument in arguments:
    field, _, value = argument.removeprefix('--config.').partition('=')
    if f'--config.{field}={value}:' in error:
      return _wrong_type(config, field, value)
  return error


def _wrong_type(config: Any, field: str, value: Any) -> str:
  kind, now = _fields(config)[field]
  return f'config field {field!r} is of type {kind.__name__} (now {now!r}); got {value!r}'
