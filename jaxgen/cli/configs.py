"""`jaxgen configs`: the configs there are, by family, and one config's text and fields."""

import argparse
import ast
import pathlib
import re
import textwrap
from typing import Any

from jaxgen.cli.field_meanings import meaning

_RESULT = 150  # letters of a result in the list

_FAMILIES = {  # by a module of jaxgen that a config imports, itself or through its base; the first that fits
  'gan': ('objectives.gan.',),
  'few steps': ('objectives.few_step.',),
  'preferences and rewards': ('objectives.preference',),
  'autoencoder': ('objectives.autoencoder.',),
  'adapters and edits': ('objectives.adapted', 'objectives.instruct'),
  'encoders and classifiers': ('objectives.contrastive', 'objectives.attributes'),
  'text to image': ('data.captions', 'text_parts', 'pretrained.text_to_image'),
  'diffusion and flow': ('objectives.diffusion.',),
}


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog='jaxgen configs', description='Lists the configs, or shows the text and the fields of one.'
  )
  parser.add_argument('name', nargs='?', help='a config: path of a file, or a bare name')
  args = parser.parse_args(argv)
  print('\n'.join(_listing() if args.name is None else _one(args.name)))
  return 0


def _listing() -> list[str]:
  """One line a config, under the name of its family."""
  from jaxgen.cli.config import available_configs, config_folders

  found: dict[str, list[str]] = {family: [] for family in (*_FAMILIES, 'other')}
  names = available_configs()
  width = max(map(len, names), default=0)
  for name in names:
    path = next(path for folder in config_folders() if (path := folder / f'{name}.py').is_file())
    tree = _parse(path)
    if any(isinstance(node, ast.FunctionDef) and node.name == 'get_config' for node in tree.body):
      text = ast.get_docstring(tree) or ''
      found[_family(path)] += [f'  {name:{width}}  {text.partition(chr(10))[0]}', f'  {"":{width}}  {_result(text)}']
  lines = [line for family, rows in found.items() if rows for line in (f'{family}:', *rows, '')]
  return [*lines, '`jaxgen configs NAME` shows its command, cost, result and fields.']


def _result(text: str) -> str:
  """The beginning of what a docstring says of the cost and the result."""
  result = ' '.join(text[text.find('Result') :].split()) if 'Result' in text else 'Result: not said.'
  return textwrap.shorten(result.partition('\n')[0], _RESULT, placeholder=' ...')


def _one(name: str) -> list[str]:
  """The docstring of a config, and its fields with their values and meaning."""
  from jaxgen.cli.config import find_config, load_config

  module = find_config(name)
  config, _ = load_config(name)
  assert module.__file__ is not None
  meanings: dict[str, str] = {}
  for path in reversed(_with_bases(pathlib.Path(module.__file__))):
    meanings |= field_comments(path.read_text(encoding='utf-8'))
  values = _flat(config)
  flags = {field: f'--config.{field}={value!r}' for field, value in values.items()}
  width = min(48, max(map(len, flags.values()), default=0))
  rows = []
  for field, flag in flags.items():
    text = meanings.get(field) or meanings.pop(field.rpartition('.')[0], '')  # a group's, beside its first field
    rows.append(f'  {flag:{width}}  {text or meaning(field)}'.rstrip())
  return [(module.__doc__ or '').strip(), '', 'fields:', *rows]


def field_comments(source: str) -> dict[str, str]:
  """The comment at the end of each field's line in `get_config`, in a dict or an assignment, by dotted name."""
  lines = source.splitlines()
  found: dict[str, str] = {}

  def visit(node: ast.Dict, prefix: str) -> None:
    for key, value in zip(node.keys, node.values, strict=True):
      if not isinstance(key, ast.Constant):
        continue
      name = f'{prefix}{key.value}'
      comment = re.search(r'  # (.+)$', lines[value.end_lineno - 1]) if value.end_lineno else None
      if comment and prefix[:-1] not in found:  # a group on one line has one comment
        found[name] = comment.group(1)
      if isinstance(value, ast.Dict):
        visit(value, f'{name}.')

  def assigned(target: ast.expr) -> str:
    """`model.depth` of `c.model.depth`."""
    if not isinstance(target, ast.Attribute):
      return ''
    return '.'.join(filter(None, (assigned(target.value), target.attr)))

  for node in ast.parse(source).body:
    if isinstance(node, ast.FunctionDef) and node.name == 'get_config':
      for inner in ast.walk(node):
        if isinstance(inner, ast.Assign) and (name := assigned(inner.targets[0])):
          comment = re.search(r'  # (.+)$', lines[(inner.end_lineno or 1) - 1])
          found |= {name: comment.group(1)} if comment else {}
        if isinstance(inner, ast.Call) and inner.args and isinstance(inner.args[0], ast.Dict):
          visit(inner.args[0], '')
  return found


def _flat(config: Any, prefix: str = '') -> dict[str, Any]:
  """Values by dotted name."""
  from ml_collections import ConfigDict

  found = {}
  for key, value in config.items():
    found |= _flat(value, f'{prefix}{key}.') if isinstance(value, ConfigDict) else {f'{prefix}{key}': value}
  return found


def _family(path: pathlib.Path) -> str:
  imports = [name for file in _with_bases(path) for name in _imports(_parse(file))]
  for family, parts in _FAMILIES.items():
    if any(name.startswith(f'jaxgen.{part}') for name in imports for part in parts):
      return family
  return 'other'


def _with_bases(path: pathlib.Path) -> list[pathlib.Path]:
  """A config's file, then the configs that it imports, nearest first."""
  files = [path]
  for name in _imports(_parse(path)):
    base = path.parent / f'{name.removeprefix("configs.").partition(".")[0]}.py'
    if name.startswith('configs.') and base.is_file() and base not in files:
      files += [file for file in _with_bases(base) if file not in files]
  return files


def _imports(tree: ast.Module) -> list[str]:
  found = []
  for node in tree.body:
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      found += [f'{node.module}.{alias.name}' for alias in node.names]
  return found


def _parse(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding='utf-8'))
