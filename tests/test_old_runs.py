"""Runs of older versions open: a folder that commit 586773e wrote is sampled, resumed and evaluated.

The run had 4 steps of `emoji_dit` with a width of 8; `label_0.png` is what that version drew from it.
"""

import json
import pathlib
import re
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from jaxgen import distributed, stage_setup
from jaxgen.checkpoint import Checkpoints
from jaxgen.cli.config import load_run
from jaxgen.cli.main import main
from jaxgen.experiment import as_stages
from jaxgen.run import check_identity, identity, newest

FOLDER = pathlib.Path(__file__).parent / 'golden' / 'emoji_dit_586773e.tar.xz'


@pytest.fixture
def run(tmp_path, monkeypatch):
  monkeypatch.setattr(distributed, 'start', lambda *_: None)  # the tests' process has used its devices already
  with tarfile.open(FOLDER) as tar:
    tar.extractall(tmp_path, filter='data')
  return tmp_path / 'emoji_dit'


def _edit(run, **fields):
  path = run / 'config.json'
  kept = json.loads(path.read_text())
  for field, value in fields.items():
    kept['config'][field] = kept['config'][field] | value if isinstance(value, dict) else value
  path.write_text(json.dumps(kept))


def test_its_samples_are_those_that_it_drew(run, tmp_path):
  out = tmp_path / 'new.png'
  assert main(['sample', '--run', str(run), '--num', '2', '--seed', '0', '--label', '0', '--out', str(out)]) == 0
  drawn, kept = (np.asarray(Image.open(path)).astype(int) for path in (out, run / 'label_0.png'))
  assert kept.std() > 20
  assert np.abs(drawn - kept).max() <= 1


def test_it_is_resumed_with_its_optimizer(run):
  config, module = load_run(run)
  (stage,) = as_stages(module.build(config))
  checkpoints = Checkpoints(run / 'checkpoints')
  found = newest(checkpoints, None, lambda step: stage_setup.abstract_state(stage))
  assert found is not None
  check_identity(found.identity(), identity(stage, {'name': 'emoji_dit'}), run)
  state = found.restore(stage_setup.abstract_state(stage))
  checkpoints.close()
  assert (int(state.step), int(state.bad_steps)) == (4, 0)
  assert sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(state.opt_state)) > 0


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model': {'width': 16}}, 'is of another network or optimizer: '),
    ({'former': 1}, "config emoji_dit has no field 'former'"),
  ],
)
def test_where_it_does_not_open_the_version_that_wrote_it_is_named(run, tmp_path, capsys, fields, message):
  _edit(run, **fields)
  assert main(['sample', '--run', str(run), '--num', '1', '--label', '0', '--out', str(tmp_path / 'a.png')]) != 0
  error = capsys.readouterr().err
  assert message in error
  assert re.search(r'; jaxgen 0\.1\.0 \(commit 586773e\) wrote \S+/emoji_dit, and this is jaxgen 0', error)
  assert error.count('\n') == 1


@pytest.mark.slow
def test_it_is_trained_on_and_evaluated(run, capsys):
  config = json.loads((run / 'config.json').read_text())['config']
  changes = {'batch_size': 8, 'evaluate_first': False, 'fid.num_samples': 0, 'samples.every': 100, 'sampling.steps': 2}
  changes |= {f'model.{name}': config['model'][name] for name in ('depth', 'heads', 'patch', 'width')}
  options = [f'--config.{field}={value}' for field, value in (changes | {'steps': 6}).items()]
  assert main(['train', '--config', 'emoji_dit', '--workdir', str(run), *options]) == 0
  records = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert [record['step'] for record in records if 'loss' in record] == [2, 4, 6]
  assert Checkpoints(run / 'checkpoints').latest() == 6
  assert main(['evaluate', '--run', str(run), '--only', 'held_out']) == 0
  assert 'held_out' in capsys.readouterr().out
