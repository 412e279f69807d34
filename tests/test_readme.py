"""What README and the notebooks say runs as it is written, for fewer steps."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FEWER = {'STEPS, DEPTH = 300, 4': 'STEPS, DEPTH = 2, 1', 'STEPS = 500': 'STEPS = 2'}


def run(code, name):
  names: dict = {}
  exec(compile(code, name, 'exec'), names)
  return names


def test_the_library_example_runs(tmp_path, monkeypatch):
  code = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
  assert len(code) == 1
  monkeypatch.chdir(tmp_path)
  images = np.asarray(jax.device_get(run(code[0], 'README.md')['images']))
  assert images.std() > 0.01
  assert (tmp_path / 'runs' / 'mine' / 'report.html').exists()


@pytest.mark.parametrize('name', [pytest.param('a_run', marks=pytest.mark.slow), 'own_experiment'])
def test_a_notebook_runs(name, tmp_path, monkeypatch):
  cells = json.loads((ROOT / 'notebooks' / f'{name}.ipynb').read_text())['cells']
  assert not any(cell.get('outputs') for cell in cells), 'clear the outputs before committing'
  code = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
  for many, few in FEWER.items():
    code = code.replace(many, few)
  monkeypatch.chdir(tmp_path)
  made = run(code, f'{name}.ipynb')['run']
  assert made.step == 2
  assert made.sample(8).std() > 1
