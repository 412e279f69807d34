"""launch/local with a stand-in for Python: when .venv is made, and what is called."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.test_layout import shell_scripts

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Makes a .venv whose programs only write down how they were called.
PYTHON = f"""#!/usr/bin/env bash
if [ "$1 $2" != '-m venv' ]; then exec {sys.executable} "$@"; fi
echo venv >> "$LOG"
mkdir -p "$3/bin"
for name in python jaxgen ruff shellcheck shfmt pyrefly mkdocs; do
  cp "$STAND_IN" "$3/bin/$name"
done
"""
STAND_IN = """#!/usr/bin/env bash
if [ "$2" = pip ]; then
  sleep "${PIP_SECONDS:-0}"
  echo "pip ${*: -2}" >> "$LOG"
  exit "${PIP_EXIT:-0}"
fi
echo "${PYTHONDONTWRITEBYTECODE:+no byte code }$(basename "$0") $*" >> "$LOG"
"""


@pytest.fixture
def checkout(tmp_path):
  for name in ('launch/local', 'launch/constraints.txt', '.ci/run', 'setup.py', 'pyproject.toml'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / name, tmp_path / name)
  for name, text in (('bin/python3', PYTHON), ('bin/stand_in', STAND_IN)):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  return tmp_path


def start(checkout, *argv, script='launch/local', **environment):
  environment = {'JAXGEN_EXTRAS': '', **environment}
  path = environment.pop('PATH', f'{checkout}/bin:{os.environ["PATH"]}')
  return subprocess.Popen(
    [checkout / script, *argv],
    env=os.environ | {'PATH': path, 'LOG': f'{checkout}/log', 'STAND_IN': f'{checkout}/bin/stand_in'} | environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(checkout, *argv, **options):
  """Exit code, standard error, and the calls that were made."""
  log = checkout / 'log'
  log.write_text('')
  process = start(checkout, *argv, **options)
  _, error = process.communicate(timeout=60)
  return process.returncode, error, log.read_text().splitlines()


BASE = ['venv', 'pip --editable .']
PYTEST = 'python -m pytest -n logical --maxprocesses 4 --dist loadfile -m'


def test_the_first_call_installs_and_the_second_only_runs(checkout):
  code, error, calls = run(checkout, 'data', 'list', PYTHONDONTWRITEBYTECODE='1')  # as images of Python set it
  assert (code, calls) == (0, [*BASE, 'jaxgen data list'])
  assert error.startswith('Installing jaxgen in .venv (Python 3.')
  assert run(checkout, 'data', 'list') == (0, '', ['jaxgen data list'])


@pytest.mark.parametrize('name', ['setup.py', 'pyproject.toml', 'launch/constraints.txt'])
def test_the_environment_is_made_again_when_what_it_holds_changes(checkout, name):
  assert run(checkout, 'data')[2] == [*BASE, 'jaxgen data']
  (checkout / '.venv' / 'old').touch()
  with open(checkout / name, 'a') as file:
    file.write('\n# changed\n')
  assert run(checkout, 'data')[2] == [*BASE, 'jaxgen data']
  assert not (checkout / '.venv' / 'old').exists()
  assert run(checkout, 'data')[2] == ['jaxgen data']


def test_an_installation_that_was_interrupted_is_not_taken_for_a_whole_one(checkout):
  code, _, calls = run(checkout, 'data', PIP_EXIT='1')
  assert (code, calls) == (1, BASE)
  assert run(checkout, 'data')[2] == [*BASE, 'jaxgen data']


def test_two_calls_at_once_install_once(checkout):
  (checkout / 'log').write_text('')
  processes = [start(checkout, 'data', PIP_SECONDS='1') for _ in range(2)]
  assert [process.wait(timeout=60) for process in processes] == [0, 0]
  for process in processes:
    process.stderr.close()
  assert (checkout / 'log').read_text().splitlines() == [*BASE, 'jaxgen data', 'jaxgen data']


def test_train_gets_the_weights_first_and_passes_options_on(checkout):
  calls = run(checkout, 'train', '--config.steps=3', '--workdir', 'a b')[2]
  assert calls == [*BASE, 'jaxgen weights get inception', 'jaxgen train --config.steps=3 --workdir a b']
  assert run(checkout, 'train', '--help')[2] == ['jaxgen train --help']


def test_test_adds_what_tests_need_and_runs_every_check(checkout):
  scripts = ' '.join(path.relative_to(ROOT).as_posix() for path in shell_scripts(ROOT))
  checks = [
    'ruff check .',
    'ruff format --check .',
    f'shellcheck {scripts}',
    f'shfmt --diff --indent 2 --case-indent --space-redirects {scripts}',
    'pyrefly check',
    'mkdocs build --strict --quiet',
  ]
  calls = run(checkout, 'test', 'tests/test_x.py', '-k', 'a b')[2]
  assert calls == [*BASE, 'pip --editable .[dev]', *checks, f'{PYTEST} not slow tests/test_x.py -k a b']
  assert run(checkout, 'test', '--slow')[2] == [*checks, f'{PYTEST} ']


def test_extras_are_installed_when_asked_for(checkout):
  assert run(checkout, 'data', JAXGEN_EXTRAS='tpu')[2] == ['venv', 'pip --editable .[tpu]', 'jaxgen data']


def test_continuous_integration_runs_the_same_command(checkout):
  code, _, calls = run(checkout, script='.ci/run')
  assert code == 0
  assert calls[-1] == f'{PYTEST} not slow'


def test_a_failed_check_fails_the_command(checkout):
  run(checkout, 'test')
  (checkout / '.venv' / 'bin' / 'pyrefly').write_text('#!/usr/bin/env bash\nexit 3\n')
  code, _, calls = run(checkout, 'test')
  assert code == 3
  assert not any('pytest' in call for call in calls)


def test_a_machine_without_a_fitting_python_is_told_so(checkout, tmp_path):
  tools = tmp_path / 'tools'
  tools.mkdir()
  for name in ('env', 'bash', 'dirname', 'head'):
    (tools / name).symlink_to(shutil.which(name))
  code, error, calls = run(checkout, 'data', PATH=str(tools))
  assert (code, calls) == (2, [])
  assert error == 'launch/local: error: needs Python 3.11 to 3.13 on the PATH; found: none\n'
  (tools / 'python3').write_text('#!/usr/bin/env bash\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
  (tools / 'python3').chmod(0o755)
  assert 'found: python3 (Python 3.9.1)\n' in run(checkout, 'data', PATH=str(tools))[1]
