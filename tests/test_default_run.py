"""What `./launch/local train` promises, on the real thing: a quarter of an hour on two cores."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxgen.metrics_file import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
OURS = ('JAX_', 'XLA_')  # the tests' own settings: eight devices, programs compiled in haste


@pytest.mark.slow
def test_the_default_run_learns_words(tmp_path):
  env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | {'JAX_PLATFORMS': 'cpu'}
  program = [sys.executable, '-m', 'jaxgen.cli.main']
  subprocess.run([*program, 'train', '--workdir', str(tmp_path / 'run')], cwd=ROOT, env=env, check=True)
  records = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  last = {}
  for record in records:
    last |= record
  assert last['attributes_seen'] > 0.85 and last['attributes_test'] > 0.8  # by chance 0.27
  assert np.mean([record['input_wait'] for record in records if 'input_wait' in record]) < 0.02
  assert (tmp_path / 'run' / 'report.html').stat().st_size > 100_000

  drawn = {}
  for color in ('red', 'blue'):
    options = ['--run', str(tmp_path / 'run'), '--num', '8', '--prompt', f'a round {color} monster']
    subprocess.run([*program, 'sample', *options, '--out', str(tmp_path / color)], cwd=ROOT, env=env, check=True)
    images = [np.asarray(Image.open(file)) for file in sorted((tmp_path / color).glob('*.png'))]
    drawn[color] = np.stack(images)[:, 12:20, 12:20].mean(axis=(0, 1, 2))  # the middle
  assert drawn['red'][0] > drawn['blue'][0] + 30 and drawn['blue'][2] > drawn['red'][2] + 30
