"""Configs from the command line: finding the file, and changing its fields.

`--config` takes the path of a config file or the bare name of one that comes with jaxgen, and each
`--config.FIELD=VALUE` changes one field of what its `get_config()` returns. A config that only a run's folder names
is loaded under the rules of trust.py.
"""

import argparse
import difflib
import importlib
import json
import math
import os
import pathlib
import re
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen.cli import trust

# Fields that shipped configs no longer have, and that did nothing there; the runs of former versions name them.
_RETIRED = {
  'celebahq_progan': {'resolution', 'batch_size', 'steps'},
  'emoji_classifier': {'drop_rate'},
  'emoji_consistency': {'process', 'margin', 'drop_rate'},
  'emoji_edm': {'process', 'margin'},
  'emoji_mean_flow': {'process'},
  'emoji_scm': {'process', 'margin', 'drop_rate'},
  'emoji_shortcut': {'process', 'margin'},
  'emoji_vdm': {'process', 'margin'},
  'emoji_vqgan': {'kl'},
  'fashion_mnist_consistency': {'process', 'margin', 'drop_rate'},
  'fashion_mnist_mean_flow': {'process'},
  'imagenet64_adm': {'warmup'},
}


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
  module = _checked(find_config(name))
  config = module.get_config().lock()
  change(config, overrides, name=str(name))
  return config, module


def change(config: Any, overrides: Mapping[str, Any] | Sequence[str], *, name: str) -> None:
  """Changes fields of a config: `{'steps': 100}`, or arguments `['--config.steps=100']`."""
  if isinstance(overrides, Mapping):
    _set(config, overrides, name)
  else:
    _parse(config, list(overrides), name)


def record(config: Any, module: types.ModuleType) -> dict[str, Any]:
  """The record of a config in config.json, enough for `load_run` to build it again."""
  return {
    'name': module.__name__.rpartition('.')[2],
    'file': None if _is_shipped(module) else str(module.__file__),
    'config': config.to_dict(),
  }


def add_trust_options(parser: argparse.ArgumentParser) -> None:
  """--config and --trust, for commands that load a run's config."""
  group = parser.add_argument_group("the code of the run's config")
  group.add_argument('--config', help='a config file, or a bare name, to use in place of the one that the run names')
  group.add_argument(
    '--trust',
    action='store_true',
    help="run the config file that the run's folder names, although you have not trained with it",
  )


def step(text: str) -> Any:
  """The value of --step: a number, or 'best'."""
  if text != 'best' and not text.isdecimal():
    raise argparse.ArgumentTypeError(f'{text!r} is no step; wanted a number, or best')
  return text if text == 'best' else int(text)


def load_run(
  workdir: str | os.PathLike,
  overrides: Mapping[str, Any] | Sequence[str] = (),
  *,
  config: str | os.PathLike | None = None,
  trust_code: bool = False,
) -> tuple[Any, types.ModuleType]:
  """The config that a run was made with, and its module; as `load_config`, from the run's folder.

  Args:
    workdir: the run's folder.
    overrides: as in `load_config`.
    config: path or bare name of the config to use in place of the one that the folder names; its code runs.
    trust_code: also run code that the user has not trained with.

  Raises:
    FileNotFoundError: `workdir` is no run, or its config is gone.
    ValueError: config.json is damaged, or names code that may not run.
  """
  kept = _read_record(workdir)
  from jaxgen.writer import flat, written_by

  name = os.fspath(config or kept.get('file') or kept['name'])
  module = find_config(name) if config or trust_code else _find_trusted(name, workdir)
  made = _checked(module).get_config().lock()
  retired = {'model.unroll'} | (_RETIRED.get(kept['name'], set()) if _is_shipped(module) else set())
  fields = {field: value for field, value in flat(kept['config']).items() if field not in retired}
  try:
    _set(made, fields, name)
  except ValueError as error:
    raise ValueError(f'{error}{written_by(workdir)}') from None
  change(made, overrides, name=name)
  return made, module


def newest_run(folder: str | os.PathLike = 'runs') -> pathlib.Path:
  """The run that was last at work in a folder of runs.

  Raises:
    FileNotFoundError: there is none.
  """
  found = [path.parent for path in pathlib.Path(folder).glob('*/config.json')]
  if not found:
    raise FileNotFoundError(f'there is no run in {folder}; name its folder with --run')
  return max(found, key=lambda run: max(path.stat().st_mtime for path in run.glob('*.json')))


def _read_record(workdir: str | os.PathLike) -> dict[str, Any]:
  from etils import epath

  path = epath.Path(workdir) / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f'{workdir} is not the folder of a run: it has no config.json')
  try:
    kept = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is damaged ({error}); write it again, as the same run of `jaxgen train` does') from error
  if not isinstance(kept, dict) or not {'name', 'config'} <= kept.keys():
    raise ValueError(
      f'{path} names no config, since the run was started from Python; jaxgen.load_run({str(workdir)!r}).sample() '
      'samples it, and experiment=..., the Experiment that it was trained with, gives all else'
    )
  named = kept.get('file') or kept['name']
  if not isinstance(named, str) or '\0' in named or not isinstance(kept['config'], dict):
    raise ValueError(f'{path} is damaged: its config is named {named!r:.80}')
  return kept


def find_config(name: str | os.PathLike) -> types.ModuleType:
  """Imports a config that the user names, whatever its code does; as `configs.NAME` where it is in such a folder."""
  return _import(name)


def _find_trusted(name: str, workdir: str | os.PathLike) -> types.ModuleType:
  """Imports the config that a run's folder names, if it is shipped or the user has trained with it."""
  if _shipped(name):
    return _import(name)
  code = _local_code(name)
  if trust.is_known(code):
    trust.open_package(shipped_folders())
    return trust.run(code)
  raise ValueError(
    f'{workdir} was made with {code.path}, which does not come with jaxgen and is not, as it is now, a config that you '
    f'have trained with here; read it, then pass --trust, or --config {code.path} to name it yourself'
  )


def remember(module: types.ModuleType) -> None:
  """Puts a config that the user trains with on record, so that its runs need no flag."""
  if not _is_shipped(module):
    trust.remember(_local_code(str(module.__file__)))


def _import(name: str | os.PathLike) -> types.ModuleType:
  trust.open_package(shipped_folders())
  shipped = _shipped(name)
  if not shipped:
    return trust.run(_local_code(name))
  _warn_of_shadow(shipped)
  return importlib.import_module(f'configs.{shipped.stem}')


def _shipped(name: str | os.PathLike) -> pathlib.Path | None:
  """The file of a shipped config, by its bare name or its path; None for any other."""
  text = os.fspath(name)
  if _is_bare(text):
    files = (folder / f'{text}.py' for folder in shipped_folders())
    return next((path for path in files if path.is_file()), None)
  path = pathlib.Path(text).resolve()
  first = path.parent in shipped_folders() and path.suffix == '.py' and _shipped(path.stem)
  return path if first == path and path.is_file() else None


def _local_code(name: str | os.PathLike) -> trust.Code:
  """The code of a config that is not shipped, read and not run."""
  text = os.fspath(name)
  path = pathlib.Path(text)
  if _is_bare(text):
    path = pathlib.Path('configs', f'{text}.py')
    if not path.is_file():
      raise FileNotFoundError(_not_found(text))
  if not path.is_file():
    raise FileNotFoundError(f'no config file {text}; {_choices(path.stem)}')
  if path.suffix != '.py':
    raise ValueError(f'{text} is no config: wanted a Python file, NAME.py')
  return trust.read(path, shipped=shipped_folders(), local=[pathlib.Path('configs').resolve()])


def _is_bare(text: str) -> bool:
  return re.fullmatch(r'[\w-]+', text) is not None


def _is_shipped(module: types.ModuleType) -> bool:
  return _shipped(str(module.__file__)) is not None and module.__name__.startswith('configs.')


def _checked(module: types.ModuleType) -> types.ModuleType:
  for function in ('get_config', 'build'):
    if not callable(getattr(module, function, None)):
      raise ValueError(f'{module.__file__} is no config: it has no function {function}()')
  return module


def _warn_of_shadow(shipped: pathlib.Path) -> None:
  """Says so where the current folder has another config of that name, which is not the one that runs."""
  other = pathlib.Path('configs', shipped.name)
  if other.is_file() and not other.samefile(shipped) and other.read_bytes() != shipped.read_bytes():
    print(f"jaxgen: the config {shipped.stem} is jaxgen's own; for this folder's, write ./{other}", file=sys.stderr)


def shipped_folders() -> list[pathlib.Path]:
  """Folders of the configs that come with jaxgen: the checkout's, and those that were installed."""
  checkout = pathlib.Path(__file__).resolve().parents[2]
  folders = [checkout / 'configs', pathlib.Path(sys.prefix) / 'share' / 'jaxgen' / 'configs']
  return [folder for folder in dict.fromkeys(folder.resolve() for folder in folders) if folder.is_dir()]


def config_folders() -> list[pathlib.Path]:
  """Where bare names are looked up: first the shipped configs, then `configs` of the current folder."""
  folders = [*shipped_folders(), pathlib.Path('configs').resolve()]
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
    _check_finite(config, field)


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
  for argument in arguments:
    if argument.startswith('--config.'):
      _check_finite(config, argument.removeprefix('--config.').split('=', 1)[0])


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
  """Raises ValueError, with the closest names, where there is no such field."""
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


def _check_finite(config: Any, field: str) -> None:
  """Raises ValueError for nan and inf, which no field of a config means."""
  _, value = _fields(config)[field]
  numbers = value if isinstance(value, tuple) else (value,)
  if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
    raise ValueError(f'config field {field!r} is {value}; it must be finite')


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
