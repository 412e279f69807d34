"""kill -9 at random moments: relaunched each time, the run ends where one that was never killed ends."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxgen.checkpoint import Checkpoints
from jaxgen.cli.config import load_config
from jaxgen.metrics_file import read_metrics
from jaxgen.train import abstract_state, train
from tests import worker

ROOT = pathlib.Path(__file__).resolve().parents[1]
OVERRIDES = [
  '--config.batch_size=16',
  '--config.model.depth=1',
  '--config.model.width=32',
  '--config.model.patch=8',
  '--config.sampling.steps=4',
  '--config.sampling.batch_size=16',
  '--config.samples.per_class=2',
  '--config.samples.every=10',
  '--config.log_every=5',
  '--config.checkpoint.every=5',
  '--config.fid.every=1000000',
  '--config.fid.num_samples=0',
]


def _launch(workdir, steps) -> subprocess.Popen:
  command = [sys.executable, '-m', 'jaxgen.cli.main', 'train', '--config', 'emoji_dit', '--workdir', str(workdir)]
  env = os.environ | {'JAX_NUM_CPU_DEVICES': '1'}
  return subprocess.Popen(
    [*command, *OVERRIDES, f'--config.steps={steps}'],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _finish(workdir, steps) -> None:
  process = _launch(workdir, steps)
  out, _ = process.communicate(timeout=600)
  assert process.returncode == 0, out[-3000:]


def _state(workdir):
  config, module = load_config('emoji_dit', OVERRIDES)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ('data', 'fsdp', 'tensor'))
  experiment = module.build(config)._replace(mesh=mesh)
  return jax.device_get(Checkpoints(workdir / 'checkpoints').restore(abstract_state(experiment)))


def _kill(process: subprocess.Popen, workdir, seconds: float) -> None:
  """Waits for a new checkpoint, then a random while, and kills."""
  before = _checkpoints(workdir)
  while process.poll() is None and _checkpoints(workdir) <= before:
    time.sleep(0.005)
  time.sleep(seconds)
  process.send_signal(signal.SIGKILL)
  process.communicate()


def _checkpoints(workdir) -> set[int]:
  return {int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdecimal()}


def _killed_run_equals_whole(tmp_path, kills: int, seed: int, steps: int) -> None:
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  _finish(whole, steps)
  moments = random.Random(seed)
  landed = []
  for _ in range(kills):
    process = _launch(killed, steps)
    _kill(process, killed, moments.uniform(0, 0.6))
    if process.returncode != -signal.SIGKILL:
      break  # it was done before it was killed
    landed.append(max(_checkpoints(killed)))
  print(f'killed with newest checkpoints {landed}')
  assert landed
  _finish(killed, steps)
  jax.tree.map(np.testing.assert_array_equal, _state(whole), _state(killed))
  losses = [{r['step']: r['loss'] for r in read_metrics(w / 'metrics.jsonl') if 'loss' in r} for w in (whole, killed)]
  assert losses[0] == losses[1]
  grids = [{p.name: p.read_bytes() for p in (w / 'samples').glob('*.png')} for w in (whole, killed)]
  assert grids[0] == grids[1]
  assert len(grids[0]) == 1 + steps // 10


def test_a_kill_changes_nothing():
  """Two kills of a toy run; `python -m tests.kill_campaign` does more."""
  command = [sys.executable, '-m', 'tests.kill_campaign', '2', '--steps', '12']
  done = subprocess.run(
    command, cwd=ROOT, env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'}, capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-3000:]
  tally = json.loads(done.stdout.splitlines()[-1])
  assert (tally['kills'], tally['different'], tally['failed']) == (2, 0, 0)


def test_a_kill_while_features_are_extracted_changes_nothing(tmp_path, monkeypatch):
  """FID by a toy network every 4 steps: 3 batches of the reference at first, and 3 of samples each time."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'

  def finish(workdir):
    with monkeypatch.context() as patch:
      patch.setenv('JAXGEN_HOME', str(workdir / 'home'))
      return train(worker.experiment(12, patch.setattr), workdir)

  def fids(workdir):
    return {line['step']: line['fid_40'] for line in read_metrics(workdir / 'metrics.jsonl') if 'fid_40' in line}

  expected = finish(whole)
  for batch, on_record in ((2, []), (2 + 3 + 2, [4])):  # of the reference, which goes on; of the samples of step 8
    command = [sys.executable, '-m', 'tests.worker', str(killed), '12', f'kill_features={batch}']
    env = os.environ | {'JAXGEN_HOME': str(killed / 'home')}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert list(fids(killed)) == on_record
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(expected), jax.device_get(finish(killed)))
  assert fids(killed) == fids(whole)
  assert list(fids(whole)) == [4, 8, 12]
  steps = [line['step'] for line in read_metrics(killed / 'metrics.jsonl')]
  assert steps == sorted([*range(1, 13), 4, 8, 12])  # lines of losses and of FID, each once
  kept = [[path.name for path in (w / 'home' / 'statistics').iterdir()] for w in (whole, killed)]
  assert kept[0] == kept[1]


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
  _killed_run_equals_whole(tmp_path, kills=20, seed=1, steps=400)
