"""The wheel: all that jaxgen ships is in it, and it trains where there is no checkout."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Built from a copy, so that the checkout stays as it is."""
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  source.mkdir()
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  for name in ('jaxgen', 'configs'):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  command = [
    sys.executable,
    '-m',
    'pip',
    'wheel',
    '-q',
    '--no-deps',
    '--no-build-isolation',
    '--wheel-dir',
    folder,
    source,
  ]
  subprocess.run(command, check=True, timeout=300)
  (made,) = folder.glob('jaxgen-*.whl')
  return made


def test_everything_is_in_it(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  shipped = [path for path in (ROOT / 'jaxgen').rglob('*') if path.is_file() and '__pycache__' not in path.parts]
  assert {path.relative_to(ROOT).as_posix() for path in shipped} - names == set()
  configs = {name.rpartition('/')[2] for name in names if '/share/jaxgen/configs/' in name}
  assert configs == {path.name for path in (ROOT / 'configs').glob('*.py')}


def test_it_trains_in_a_fresh_environment_outside_the_checkout(wheel, tmp_path):
  place = tmp_path / 'env'
  subprocess.run([sys.executable, '-m', 'venv', '--without-pip', place], check=True, timeout=120)
  own = {'base': str(place), 'platbase': str(place)}
  packages = pathlib.Path(sysconfig.get_path('purelib', 'venv', own))
  # What is installed here, without an editable jaxgen: its finder is in a .pth, which this one does not read.
  (packages / 'dependencies.pth').write_text(''.join(f'{p}\n' for p in sys.path if p.endswith('site-packages')))
  python = place / 'bin' / 'python'
  command = [sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', wheel]
  subprocess.run(command, check=True, timeout=300)
  env = {name: value for name, value in os.environ.items() if not name.startswith(('PYTHON', 'JAX_NUM', 'JAX_NUMPY'))}
  env |= {'JAX_PLATFORMS': 'cpu', 'JAXGEN_HOME': str(tmp_path / 'home')}

  def run(*argv):
    return subprocess.run([place / 'bin' / 'jaxgen', *argv], cwd=tmp_path, env=env, capture_output=True, text=True)

  assert 'gaussians_gan' in run('configs').stdout
  trained = run('train', '--config', 'gaussians_gan', '--config.steps=2', '--workdir', 'run')
  assert trained.returncode == 0, trained.stderr
  record = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert record['name'] == 'gaussians_gan'
  assert record['environment']['commit'] is None  # of no checkout
  code = 'import jaxgen; print(jaxgen.__file__, jaxgen.load_run("run").step)'
  loaded = subprocess.run([python, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
  assert loaded.stdout.split() == [str(packages / 'jaxgen' / '__init__.py'), '2'], loaded.stderr
