"""The train loop: a run is a pure function of (config, seed, step), whatever happens to its process."""

import errno
import json
import os
import shutil
import signal

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tensorboardX.event_file_writer import EventFileWriter

from jaxgen import digests, report, sharding
from jaxgen.checkpoint import CheckpointError, Checkpoints, Policy
from jaxgen.distributed import Preempted
from jaxgen.evaluators.base import Evaluator
from jaxgen.experiment import as_stages
from jaxgen.metrics_file import read_metrics
from jaxgen.train import RunError, train
from tests import toys


class Killed(BaseException):
  """Stands for a process that dies: nothing catches it."""


def _same(a, b) -> None:
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def _evaluator(every: int, act=lambda context: {}, name: str = 'look') -> Evaluator:
  return Evaluator(name, every, act)


def _at(step: int, do) -> Evaluator:
  """Does something once, in the evaluation of one step."""
  done = []

  def act(context):
    if context.step == step and not done:
      done.append(step)
      do(context)
    return {'value': float(context.step)}

  return _evaluator(2, act)


def _die(context):
  raise Killed


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run: its folder and its last state."""
  workdir = tmp_path_factory.mktemp('whole')
  evaluators = (_evaluator(2, lambda context: {'value': float(context.step)}),)
  return workdir, train(toys.experiment(evaluators=evaluators), workdir)


def _records(workdir):
  """What is on record, without what a clock says."""
  clocks = ('images_per_second', 'step_seconds', 'input_wait', 'host_memory_gib', 'goodput', 'look/seconds')
  records = read_metrics(workdir / 'metrics.jsonl')
  return [{key: value for key, value in record.items() if key not in clocks} for record in records]


@pytest.mark.parametrize('step', [2, 4, 6, 10])
def test_a_killed_run_goes_on_bit_for_bit(step, whole, tmp_path):
  evaluators = (_at(step, _die),)
  with pytest.raises(Killed):
    train(toys.experiment(evaluators=evaluators), tmp_path)
  state = train(toys.experiment(evaluators=evaluators), tmp_path)
  _same(state, whole[1])
  # Every log line and every evaluation is on record once, also of the step whose evaluation was cut off.
  assert _records(tmp_path) == _records(whole[0])


def test_a_kill_between_two_evaluations_repeats_neither(tmp_path):
  seen = []

  def act(context):
    seen.append(context.step)
    return {'first': float(context.step)}

  evaluators = (_evaluator(2, act, 'first'), _at(8, _die))
  with pytest.raises(Killed):
    train(toys.experiment(evaluators=evaluators), tmp_path)
  train(toys.experiment(evaluators=evaluators), tmp_path)
  assert seen == [2, 4, 6, 8, 10, 12]
  for name in ('first', 'value'):
    assert [r['step'] for r in _records(tmp_path) if name in r] == [2, 4, 6, 8, 10, 12]


def test_no_step_is_left_out_of_the_lines_whatever_the_intervals(tmp_path):
  intervals = {'log_every': 5, 'checkpoints': Policy(every=4)}
  train(toys.experiment(**intervals), tmp_path / 'whole')
  with pytest.raises(Killed):
    train(toys.experiment(evaluators=(_evaluator(8, _die),), **intervals), tmp_path / 'killed')
  train(toys.experiment(**intervals), tmp_path / 'killed')
  assert [record['step'] for record in _records(tmp_path / 'whole')] == [4, 5, 8, 10, 12]
  assert _records(tmp_path / 'killed') == _records(tmp_path / 'whole')


def test_evaluations_can_begin_before_the_first_step(whole, tmp_path):
  seen = []

  def act(context):
    seen.append(context.step)
    if seen == [0]:
      raise Killed
    return {'value': float(context.step)}

  experiment = toys.experiment(evaluators=(_evaluator(6, act),), evaluate_first=True)
  with pytest.raises(Killed):
    train(experiment, tmp_path)
  state = train(experiment, tmp_path)
  assert seen == [0, 0, 6, 12]
  assert [r['step'] for r in read_metrics(tmp_path / 'metrics.jsonl') if 'value' in r] == [0, 6, 12]
  _same(state, whole[1])


def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(whole, tmp_path):
  evaluators = (_at(6, lambda context: os.kill(os.getpid(), signal.SIGTERM)),)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(Preempted):
    train(toys.experiment(evaluators=evaluators), tmp_path)
  assert signal.getsignal(signal.SIGTERM) is before
  assert Checkpoints(tmp_path / 'checkpoints').latest() == 7  # no multiple of the interval
  state = train(toys.experiment(evaluators=evaluators), tmp_path)
  assert signal.getsignal(signal.SIGTERM) is before
  _same(state, whole[1])
  # The line of step 8 tells of that step alone: step 7 has one of its own.
  assert [record['step'] for record in _records(tmp_path) if 'loss' in record] == [2, 4, 6, 7, 8, 10, 12]


def test_sigterm_cuts_a_long_evaluation_short(tmp_path):
  def act(context):
    os.kill(os.getpid(), signal.SIGTERM)
    context.pause()
    raise AssertionError('went on after being told to stop')

  with pytest.raises(Preempted):
    train(toys.experiment(evaluators=(_evaluator(3, act),)), tmp_path)
  assert Checkpoints(tmp_path / 'checkpoints').latest() == 3


def test_a_run_goes_on_over_another_mesh(whole, tmp_path):
  with pytest.raises(Killed):
    train(toys.experiment(evaluators=(_at(6, _die),)), tmp_path)
  state = train(toys.experiment(mesh=sharding.make_mesh(data=8)), tmp_path)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), whole[1], state)
  loss = {r['step']: r['loss'] for r in _records(whole[0]) if 'loss' in r}
  again = {r['step']: r['loss'] for r in _records(tmp_path) if 'loss' in r}
  np.testing.assert_allclose([again[s] for s in loss], list(loss.values()), rtol=1e-5)


def test_a_finished_run_is_left_as_it_is(whole):
  before = _records(whole[0])
  _same(train(toys.experiment(), whole[0]), whole[1])
  assert _records(whole[0]) == before


def test_a_longer_run_goes_on_from_the_shorter(whole, tmp_path):
  train(toys.experiment(steps=8), tmp_path)
  _same(train(toys.experiment(), tmp_path), whole[1])


@pytest.mark.parametrize(
  ('change', 'named'),
  [
    ({'batch_size': 32}, 'batch_size was 16, is 32'),
    ({'data_seed': 5}, 'data_seed was 0, is 5'),
    ({'seed': 3}, 'run_seed was 0, is 3'),
    ({'fingerprint': 'other'}, "dataset was 'toy', is 'other'"),
  ],
)
def test_another_run_in_the_folder_is_refused_by_name(change, named, whole):
  with pytest.raises(ValueError, match=named):
    train(toys.experiment(**change), whole[0])


def test_another_config_is_refused_and_may_be_forced(whole, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(whole[0], folder)
  with pytest.raises(ValueError, match="config was None, is 'other'"):
    train(toys.experiment(), folder, record={'name': 'other'})
  state = train(toys.experiment(steps=13, batch_size=32), folder, record={'name': 'other'}, allow_changes=True)
  assert state.step == 13


def test_a_checkpoint_of_another_network_is_refused(whole):
  with pytest.raises(CheckpointError, match=r'another network or optimizer: .* got \(8, 8\), wanted \(8, 16\)'):
    train(toys.experiment(objective=toys.objective(width=16)), whole[0])
  with pytest.raises(CheckpointError, match='another network or optimizer'):
    train(toys.experiment(optimizers={'net': optax.sgd(1e-2)}), whole[0])


def test_a_config_that_is_refused_leaves_the_folder_as_it_was(tmp_path):
  record = {'name': 'toy', 'config': {'width': 8}}
  train(toys.experiment(steps=4), tmp_path, record=record)
  before = {path: path.read_bytes() for path in tmp_path.glob('*.json*')}
  other = toys.experiment(objective=toys.objective(width=16))
  with pytest.raises(CheckpointError, match='another network'):
    train(other, tmp_path, record=record | {'config': {'width': 16}})
  assert {path: path.read_bytes() for path in tmp_path.glob('*.json*')} == before  # `sample` still builds this run


def _full(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_for_a_save_is_told_of_once(tmp_path, monkeypatch):
  """The save in the background fails, and then the report, and then whatever ends the checkpoints."""
  monkeypatch.setattr(ocp.CheckpointManager, 'wait_until_finished', _full)
  monkeypatch.setattr(report, 'write', _full)
  with pytest.raises(CheckpointError, match=r'No space left on device.* the disk is full: free some space'):
    train(toys.experiment(), tmp_path)


def test_a_disk_that_is_full_for_the_metrics_is_told_of_once(tmp_path, monkeypatch):
  """A line fails, and then the report, and TensorBoard's file when it is closed."""

  def fill(context):
    monkeypatch.setattr(EventFileWriter, 'flush', _full)
    monkeypatch.setattr(report, 'write', _full)
    _full()

  with pytest.raises(RunError, match=r'the disk of .* is full: free some space .*, the run goes on from step 8'):
    train(toys.experiment(evaluators=(_at(10, fill),)), tmp_path)


def test_a_damaged_checkpoint_without_digests_says_what_to_do(whole, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(whole[0], folder)
  (folder / 'checkpoints' / '12' / digests.NAME).unlink()
  for path in (folder / 'checkpoints' / '12' / 'params').rglob('*'):
    if path.is_file() and path.stat().st_size:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(CheckpointError, match=r'12 is damaged .* delete that folder and the run goes on from step 8'):
    train(toys.experiment(), folder)
  shutil.rmtree(folder / 'checkpoints' / '12')
  _same(train(toys.experiment(), folder), whole[1])


def test_a_save_that_was_killed_leaves_the_checkpoint_before(whole, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(whole[0], folder)
  (folder / 'checkpoints' / '12').rename(folder / 'checkpoints' / '12.orbax-checkpoint-tmp-7')
  (folder / 'checkpoints' / '12.orbax-checkpoint-tmp-7' / 'commit_success.txt').unlink(missing_ok=True)
  _same(train(toys.experiment(), folder), whole[1])


def test_what_is_kept(tmp_path):
  train(toys.experiment(checkpoints=Policy(every=2, keep=1, keep_every=8)), tmp_path)
  assert Checkpoints(tmp_path / 'checkpoints').steps() == [8, 12]


def test_too_many_steps_that_are_not_finite_stop_the_run(tmp_path):
  broken = toys.experiment(objective=toys.objective(poison=5), max_bad_steps=3)
  with pytest.raises(RunError, match='the last 3 steps before step 8 were not finite'):
    train(broken, tmp_path)
  skipped = {record['step']: record['skipped'] for record in _records(tmp_path) if 'skipped' in record}
  assert skipped == {2: 0, 4: 0, 6: 0.5, 8: 1}
  good = train(toys.experiment(objective=toys.objective(poison=5), max_bad_steps=100), tmp_path / 'other')
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good))
  assert good.bad_steps == 7


def test_stages_count_on_and_carry_over(tmp_path):
  wide = toys.experiment(steps=4, objective=toys.objective(), optimizers={'net': optax.adamw(1e-3)})
  state = train((toys.experiment(steps=8), wide), tmp_path)
  assert state.step == 12
  assert state.opt_state['net'][0].count == 12  # the moments went over too
  steps = [record['step'] for record in _records(tmp_path)]
  assert steps == [2, 4, 6, 8, 10, 12]
  # Killed in the second stage, and at the seam.
  for step in (8, 10):
    folder = tmp_path / f'killed_{step}'
    second = toys.experiment(steps=4, optimizers={'net': optax.adamw(1e-3)}, evaluators=(_at(step, _die),))
    first = toys.experiment(steps=8, evaluators=(_at(step, _die),))
    with pytest.raises(Killed):
      train((first, second), folder)
    _same(train((first, second), folder), state)


def test_a_stage_with_another_network_takes_what_fits(tmp_path):
  first = toys.experiment(steps=1)
  after_first = train(first, tmp_path / 'first')
  both = train((first, toys.experiment(steps=1, objective=toys.objective(width=16))), tmp_path / 'both')
  assert both.params['net']['kernel'].shape == (8, 16)
  assert after_first.params['net']['kernel'].shape == (8, 8)


def test_experiments_that_cannot_run_are_refused_before_compiling(tmp_path):
  with pytest.raises(ValueError, match='steps is 0'):
    train(toys.experiment(steps=0), tmp_path)
  with pytest.raises(ValueError, match=r'checkpoints\.every is 0; it must be 1 or more'):
    train(toys.experiment(checkpoints=Policy(every=0)), tmp_path)
  with pytest.raises(ValueError, match=r'checkpoints\.keep is 0'):
    train(toys.experiment(checkpoints=Policy(keep=0)), tmp_path)
  with pytest.raises(ValueError, match=r'clip_norm is 0\.0; it must be above 0'):
    train(toys.experiment(clip_norm=0.0), tmp_path)
  with pytest.raises(ValueError, match='every of look is -1; it must be 1 or more'):
    train(toys.experiment(evaluators=(_evaluator(-1),)), tmp_path)
  assert as_stages(toys.experiment(evaluators=(_evaluator(0), _evaluator(2))))[0].evaluators[0].every == 2
  with pytest.raises(ValueError, match=r"evaluators must have different names, got \['look', 'look'\]"):
    train(toys.experiment(evaluators=(_evaluator(1), _evaluator(2))), tmp_path)
  with pytest.raises(ValueError, match='batch_size 16 does not divide over 8 devices times 3 accumulation steps'):
    train(toys.experiment(accumulate=3), tmp_path)
  with pytest.raises(ValueError, match='at least one Experiment'):
    train((), tmp_path)


def test_the_identity_is_readable_by_others(whole):
  path = whole[0] / 'checkpoints' / '12' / 'identity' / 'metadata'
  saved = json.loads(path.read_text())
  assert saved == toys.experiment().data.identity | {'config': None, 'run_seed': 0}


def test_a_run_begins_with_one_summary_and_keeps_the_table_of_its_parameters(tmp_path, capsys):
  train(toys.experiment(steps=4), tmp_path, record={'name': 'toy'})
  shown = capsys.readouterr().out
  summary = (
    '  Training toy, 0 of 4 steps done\n'
    '  data        toy train, 48 records; no classes: training unconditionally\n  batch       16, 4 steps\n'
    f'  parameters  net 128\n  devices     8 x cpu, data 2 x fsdp 4\n  folder      {tmp_path}\n'
  )
  assert summary in shown
  assert 'net/kernel' not in shown
  assert 'net/kernel' in (tmp_path / 'parameters.txt').read_text()
  record = read_metrics(tmp_path / 'metrics.jsonl')[-1]
  assert 0.01 < record['host_memory_gib'] < 100
  assert record['step_seconds'] == pytest.approx(16 / record['images_per_second'])
