"""What of a run's folder may run: crafted folders try to run a payload, and one's own runs need no flag."""

import json
import os
import pathlib
import py_compile
import shutil
import sys

import pytest

from jaxgen.cli import config as configs
from jaxgen.cli.main import main

CONFIG = """
from ml_collections import ConfigDict
def get_config(): return ConfigDict({'a': 1})
def build(c): raise ValueError(f'built with {c.a}')
"""
OWN = f'{CONFIG}\nNAME = "own"\n'


@pytest.fixture
def place(tmp_path, monkeypatch):
  """An empty current folder, and an empty folder of jaxgen's own."""
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  monkeypatch.setattr('jaxgen.distributed.start', lambda *_: None)
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  before = set(sys.modules)
  yield tmp_path
  for name in set(sys.modules) - before:
    if name.partition('.')[0] in ('configs', 'config_file', 'helper', 'deep'):
      del sys.modules[name]


def payload(place, text=CONFIG):
  return f'import pathlib\npathlib.Path({str(place / "ran")!r}).touch()\n{text}'


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def run_folder(place, **kept):
  """The folder of a run that names its config so."""
  folder = place / 'run'
  write(folder / 'config.json', json.dumps({'name': 'x', 'file': None, 'config': {'a': 2}} | kept))
  return folder


def commands(folder, place):
  return (['sample', '--run', str(folder), '--out', str(place / 'out')], ['evaluate', '--run', str(folder)])


def trained_with(path, *options):
  """`jaxgen train` up to where the config is built, which is not further than the tests need it."""
  assert main(['train', '--config', str(path), '--workdir', str(path.parent / 'run'), *options]) == 2


def as_file(place):
  return {'file': str(write(place / 'run' / 'evil.py', payload(place)))}


def as_relative_file(place):
  write(place / 'here' / 'evil.py', payload(place))
  return {'file': './evil.py'}


def as_name_with_separators(place):
  write(place / 'evil.py', payload(place))
  return {'name': '../evil.py'}


def as_name_here(place):
  write(place / 'here' / 'configs' / 'evil.py', payload(place))
  return {'name': 'evil'}


def as_symlink(place):
  evil = write(place / 'run' / 'evil', payload(place))
  (place / 'run' / 'emoji_dit.py').symlink_to(evil)
  return {'name': 'emoji_dit', 'file': str(place / 'run' / 'emoji_dit.py')}


def as_file_of_a_shipped_name(place):
  return {'name': 'emoji_dit', 'file': str(write(place / 'run' / 'configs' / 'emoji_dit.py', payload(place)))}


def as_import(place):
  """The file was trained with, and what it imports now was not."""
  path = write(place / 'run' / 'configs' / 'mine.py', f'from configs import other\n{CONFIG}')
  write(path.with_name('other.py'), 'x = 1\n')
  trained_with(path)
  write(path.with_name('other.py'), payload(place))
  return {'file': str(path)}


def as_relative_import(place):
  path = write(place / 'run' / 'configs' / 'mine.py', f'from . import other\n{CONFIG}')
  write(path.with_name('other.py'), 'x = 1\n')
  trained_with(path)
  write(path.with_name('other.py'), payload(place))
  return {'file': str(path)}


def as_module_beside(place):
  path = write(place / 'run' / 'mine.py', f'import helper\n{CONFIG}')
  write(path.with_name('helper.py'), 'import deep.er\n')
  write(place / 'run' / 'deep' / 'er.py', 'x = 1\n')
  trained_with(path)
  write(place / 'run' / 'deep' / 'er.py', payload(place))
  return {'file': str(path)}


def as_shadowed_import(place):
  """The file was trained with, and meant the shipped config; one of its name lies beside it now."""
  path = write(place / 'run' / 'configs' / 'mine.py', f'from configs import emoji_dit\n{CONFIG}')
  trained_with(path)
  write(path.with_name('emoji_dit.py'), payload(place))
  return {'file': str(path)}


CRAFTED = [
  as_file, as_relative_file, as_name_with_separators, as_name_here, as_symlink, as_file_of_a_shipped_name, as_import,
  as_relative_import, as_module_beside, as_shadowed_import,
]  # fmt: skip


@pytest.mark.parametrize('craft', CRAFTED, ids=lambda craft: craft.__name__)
def test_a_crafted_folder_runs_nothing(craft, place, capsys):
  folder = run_folder(place, **craft(place))
  capsys.readouterr()
  for command in commands(folder, place):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith('jaxgen: error: ') and error.count('\n') == 1
    assert '--trust' in error
  assert not (place / 'ran').exists()
  assert main([*commands(folder, place)[0], '--trust']) == 2
  assert 'built with 2' in capsys.readouterr().err
  assert (place / 'ran').exists()


def test_a_shipped_config_is_not_shadowed_by_one_of_the_current_folder(place, capsys):
  write(place / 'here' / 'configs' / 'emoji_dit.py', payload(place))
  write(place / 'here' / 'configs' / 'emoji_dit_flow.py', payload(place))
  for name in ('emoji_dit', 'emoji_dit_flow'):
    config, module = configs.load_config(name)
    assert pathlib.Path(module.__file__).parent in configs.shipped_folders()
    assert f"the config {name} is jaxgen's own; for this folder's, write ./configs/{name}.py" in capsys.readouterr().err
    kept = {'name': name, 'config': config.to_dict()}
    assert configs.load_run(run_folder(place, **kept))[1].__file__ == module.__file__
  assert not (place / 'ran').exists()
  configs.load_config('./configs/emoji_dit.py')
  assert (place / 'ran').exists()
  assert configs.load_config('emoji_dit')[1].__file__ == str(configs.shipped_folders()[0] / 'emoji_dit.py')


def test_byte_code_beside_a_known_config_is_not_run(place):
  """A __pycache__ that says it was made of the file, whatever the file holds, is the import system's first choice."""
  path = write(place / 'here' / 'configs' / 'mine.py', f'import helper\nfrom configs import other\n{CONFIG}')
  for name in ('helper', 'other'):
    write(path.with_name(f'{name}.py'), 'x = 1\n')
  trained_with(path)
  evil = write(place / 'evil.py', payload(place))
  for name in ('mine', 'helper', 'other'):
    cached = path.parent / '__pycache__' / f'{name}.{sys.implementation.cache_tag}.pyc'
    py_compile.compile(str(evil), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
  configs.load_run(run_folder(place, file=str(path)))
  assert not (place / 'ran').exists()


def test_a_run_of_a_config_that_was_trained_with_needs_no_flag(place, capsys):
  path = write(place / 'here' / 'configs' / 'mine.py', f'from configs import base\n{CONFIG}')
  write(path.with_name('base.py'), 'x = 1\n')
  trained_with(path)
  folder = run_folder(place, **{'file': str(path)})
  for command in commands(folder, place):
    assert main(command) == 2
    assert 'built with 2' in capsys.readouterr().err
  moved = shutil.move(path.parent, place / 'elsewhere' / 'configs')  # code is known by what it is
  os.chdir(place)
  config, _ = configs.load_run(run_folder(place, file=str(pathlib.Path(moved) / 'mine.py')))
  assert config.a == 2
  path = write(place / 'here' / 'mine.py', f'# changed\n{CONFIG}')
  with pytest.raises(ValueError, match='not, as it is now, a config that you have trained with'):
    configs.load_run(run_folder(place, file=str(path)))


def test_the_code_of_a_run_can_be_named(place):
  path = write(place / 'mine.py', payload(place))
  config, module = configs.load_run(run_folder(place, file='/gone/mine.py'), config=path)
  assert (config.a, module.__file__) == (2, str(path))
  with pytest.raises(FileNotFoundError, match=r'no config file /gone/mine\.py'):
    configs.load_run(run_folder(place, file='/gone/mine.py'))


def test_training_goes_on_where_the_record_cannot_be_written(place, caplog):
  (place / 'home').write_text('a file')
  trained_with(write(place / 'here' / 'mine.py', OWN))
  assert 'could not be put on record' in caplog.text


@pytest.mark.parametrize('kept', [{'file': 3}, {'name': ['x']}, {'config': 3}, {'file': 'a\0b.py'}])
def test_a_record_that_is_no_record_is_one_line(kept, place, capsys):
  for command in commands(run_folder(place, **kept), place):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert 'config.json is damaged' in error and error.count('\n') == 1


def test_a_config_that_is_not_python_says_so(place):
  path = write(place / 'mine.py', 'def f(:\n')
  with pytest.raises(ValueError, match=r'mine\.py is no config: it is not Python'):
    configs.load_config(path)
