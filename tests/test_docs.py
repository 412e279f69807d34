"""Every `jaxgen` command in README, docs/, notebooks and the configs' docstrings is one that the program takes.

Nothing is run: each command's own parser reads its words, and fields of configs are looked up in the configs.
"""

import argparse
import ast
import importlib
import pathlib
import pkgutil
import re
import shlex
import textwrap

import pytest

from jaxgen import model_folder
from jaxgen.cli import config as configs
from jaxgen.cli import configs as listed
from jaxgen.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
  path
  for path in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')), *sorted((ROOT / 'configs').glob('*.py')))
  if path.name not in ('results.md', 'design.md')  # numbers with the commands of their day
]
_SUMMARY = re.compile(r'\.\.\.|\||\[|\bFIELD\b|\bF=V\b')  # of a command, which is none itself


class Parsed(Exception):
  """What a parser read: the names, and the words that are left."""


def commands(path: pathlib.Path) -> list[str]:
  """The commands of a page, with lines that go on joined, and comments and descriptions cut off."""
  text = path.read_text(encoding='utf-8')
  if path.suffix == '.py':
    text = textwrap.indent(ast.get_docstring(ast.parse(text)) or '', '  ')
  text = re.sub(r'\s*\\\n\s*', ' ', text)
  text = re.sub(r'\./launch/local (?!test)', 'jaxgen ', text)
  text = re.sub(r'(?:\n {4,}| {2,})(?=--\w)', ' ', text)  # lines of a docstring that go on with a command
  fenced = ''.join(re.findall(r'^```\w*\n(.*?)^```', text, re.DOTALL | re.MULTILINE))
  lines = re.findall(r'^(?: {4,})?(jaxgen .*)', fenced, re.MULTILINE)
  lines += re.findall(r'^ {4,}(jaxgen .*)', text, re.MULTILINE)
  found = re.findall(r'`(jaxgen [^`\n]+)`', text) + [re.split(r'\s{2,}| # ', line)[0] for line in lines]
  parts = [part.strip() for line in found for part in line.split('&&')]
  return list(dict.fromkeys(part for part in parts if part.startswith('jaxgen ') and not _SUMMARY.search(part)))


@pytest.fixture
def parse(monkeypatch):
  """Runs a command until its parser has read it."""
  original, depth = argparse.ArgumentParser.parse_known_args, []

  def read(self, args=None, namespace=None):
    depth.append(self)
    try:
      result = original(self, args, namespace)
    finally:
      depth.pop()
    if not depth:
      raise Parsed(*result)
    return result

  monkeypatch.setattr(argparse.ArgumentParser, 'parse_known_args', read)

  def run(argv):
    with pytest.raises(Parsed) as caught:
      importlib.import_module(main._COMMANDS[argv[0]][0]).main(argv[1:])
    return caught.value.args

  return run


@pytest.mark.parametrize('path', [path for path in PAGES if commands(path)], ids=lambda path: path.stem)
def test_its_commands_are_taken(path, parse):
  for command in commands(path):
    words = shlex.split(command)[1:]
    assert words[0] in main._COMMANDS, command
    if len(words) == 1:  # only named
      continue
    names, left = parse(words)
    assert all(word.startswith('--config.') for word in left), f'{command}: {left}'
    if words[0] == 'train' and not names.config.endswith('.py') and names.config != 'NAME':
      configs.load_config(names.config, left)


def test_a_wrong_command_would_be_found(tmp_path, parse):
  page = tmp_path / 'page.md'
  page.write_text(
    'jaxgen trains.\n\n    jaxgen train --confg emoji_dit && jaxgen sample \\\n      --out x.png  # so\n\n'
    '`jaxgen weights list`\n```\njaxgen export RUN --out F    a model\n```\n'
  )
  found = ['jaxgen weights list', 'jaxgen export RUN --out F']
  found += ['jaxgen train --confg emoji_dit', 'jaxgen sample --out x.png']
  assert commands(page) == found
  assert parse(['train', '--confg', 'emoji_dit'])[1] == ['--confg', 'emoji_dit']
  with pytest.raises(SystemExit):
    parse(['sample', '--num', 'many'])


def test_models_that_are_named_come_with_jaxgen():
  text = ''.join(path.read_text(encoding='utf-8') for path in PAGES)
  named = set(re.findall(r'--weights (jaxgen/[a-z]\w*)', text))
  assert named <= set(model_folder.shipped())


def test_names_of_the_library_are_there():
  pages = [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md'), *(ROOT / 'notebooks').glob('*.ipynb')]
  text = ''.join(path.read_text(encoding='utf-8') for path in pages)
  names = set(re.findall(r'\bjaxgen(?:\.[A-Za-z_]\w*)+', text))
  for module, imports in re.findall(r'from (jaxgen[\w.]*) import ([\w ,]+)', text):
    names |= {f'{module}.{name.split(" as ")[0].strip()}' for name in imports.split(',') if name.strip() != 'n'}
  assert {'jaxgen.load_run', 'jaxgen.data.from_arrays', 'jaxgen.adapters.lora.LoRA'} <= names
  for name in names:
    pkgutil.resolve_name(name)


def test_every_page_is_in_the_site_s_navigation():
  nav = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8').partition('nav:')[2]
  listed = set(re.findall(r'\S+\.md', nav))
  pages = {path.relative_to(ROOT / 'docs').as_posix() for path in (ROOT / 'docs').rglob('*.md')}
  assert listed - {'recipes.md'} == pages  # recipes.md is made of the configs


def test_each_config_is_listed_with_its_result_and_each_field_with_its_meaning(capsys):
  assert listed.main([]) == 0
  listing = capsys.readouterr().out
  assert re.search(r'emoji_dit +A DiT learns .*\n +Result, seed 0, two CPU cores, 13 min 26 s', listing)
  names = re.findall(r'^  (\w+) ', listing, re.MULTILINE)
  assert len(names) > 60 and 'Result: not said' not in listing
  for name in names:
    rows = listed._one(name)
    rows = rows[rows.index('fields:') + 1 :]
    assert rows and not [row for row in rows if not re.search(r'\S  +\S', row.strip())], name
