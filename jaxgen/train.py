"""The one train loop. It knows no network, no objective and no dataset.

A run is a pure function of (config, seed, step): the batch of step s comes from the loader's random access, the
randomness of step s is fold_in(key(seed), s), and the state is in the checkpoint. So a run that is killed and
started again is bit-identical, on the same mesh, to one that was not.
"""

import errno
import functools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from jaxgen import distributed, report, sharding
from jaxgen import writer as writers
from jaxgen.checkpoint import Checkpoints
from jaxgen.distributed import Preempted
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.experiment import Experiment, as_stages, stage_of
from jaxgen.stage_setup import abstract_state, begin_stage, compile_step, initial_state, place_frozen
from jaxgen.step_window import StepWindow
from jaxgen.train_state import TrainState

_MEET_EVERY = 16  # steps between two meetings of the processes, at most: devices take about 32 before the host waits


class RunError(RuntimeError):
  """The run cannot go on, for a reason that the message tells."""


def train(
  experiment: Experiment | Sequence[Experiment],
  workdir: str | os.PathLike,
  *,
  record: Mapping[str, Any] | None = None,
  allow_changes: bool = False,
) -> TrainState:
  """Trains until the last step, from the newest checkpoint in `workdir` if there is one.

  Args:
    experiment: what `build(config)` returns; several are stages.
    workdir: the run's folder.
    record: what is written as config.json: the config's name and its resolved values.
    allow_changes: go on although dataset, seed, batch size or config are not those of the checkpoint.

  Returns:
    The state after the last step.

  Raises:
    ValueError: the experiment cannot run as configured, or `workdir` holds another run, or is another process's now.
    RunError: too many steps in a row were not finite, or the disk is full.
    CheckpointError: a checkpoint cannot be read or written.
    Preempted: SIGTERM came; the state is saved.
  """
  with distributed.alone_in(workdir):
    return _train(as_stages(experiment), epath.Path(workdir), dict(record or {}), allow_changes)


def _train(
  stages: Sequence[Experiment], workdir: epath.Path, record: dict[str, Any], allow_changes: bool
) -> TrainState:
  checkpoints = Checkpoints(workdir / 'checkpoints', stages[0].checkpoints)
  start = checkpoints.latest()
  if start is not None and not allow_changes:
    check_identity(checkpoints.identity(), identity(stages[stage_of(stages, start)], record), workdir)
  total = sum(stage.steps for stage in stages)
  for evaluator in (evaluator for stage in stages for evaluator in stage.evaluators):
    evaluator.check()
  distributed.ready('the start of the run')
  speaks = distributed.is_first()
  writer = writers.Writer(workdir, resume_step=start) if speaks else writers.silent()
  with writer, distributed.stop_signal() as stop:
    run = _Run(workdir, writer, checkpoints, stop, record, total)
    try:
      state = run.stages(stages, start)
      checkpoints.wait()
    except BaseException as error:
      checkpoints.close()
      run.report()
      if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise RunError(
          f'the disk of {workdir} is full: free some space and start again, the run goes on {checkpoints.going_on()}'
        ) from error
      raise
    checkpoints.close()
    run.report()
  distributed.ready('the end of the run')
  return state


def identity(stage: Experiment, record: Mapping[str, Any]) -> dict[str, Any]:
  """What must not change while a run goes on, as JSON."""
  return {'config': record.get('name'), 'run_seed': stage.seed} | dict(stage.data.identity)


def check_identity(saved: Mapping[str, Any], now: Mapping[str, Any], workdir: os.PathLike) -> None:
  """Raises ValueError, naming every difference, where a checkpoint belongs to another run."""
  different = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
  if different:
    changes = ', '.join(f'{key} was {saved.get(key)!r}, is {now.get(key)!r}' for key in different)
    raise ValueError(
      f'{workdir} holds another run: {changes}. Use another --workdir, set these back, '
      'or pass --allow-changes to go on all the same'
    )


class _Run:
  """What a run's steps share: where they write, where they save, when they stop."""

  def __init__(self, workdir, writer, checkpoints, stop, record, total):
    self.workdir = workdir
    self.writer = writer
    self.checkpoints = checkpoints
    self.stop = stop
    self.record = record
    self.total = total

  def stages(self, stages: Sequence[Experiment], start: int | None) -> TrainState:
    first = 0 if start is None else stage_of(stages, start)
    state = None
    begin = sum(stage.steps for stage in stages[:first])
    for stage in stages[first:]:
      distributed.ready(f'the stage from step {begin}')
      abstract = abstract_state(stage)
      if state is None and start is not None:
        state = self.checkpoints.restore(abstract, start)
        self.writer.text(f'Going on from step {start:,} of {self.total:,} in {self.workdir}')
      else:
        fresh = initial_state(stage, abstract)
        state = fresh if state is None else begin_stage(stage, state, fresh)
      self.writer.config(self.record)  # not before the checkpoint is known to be of this config
      state = self.stage(stage, abstract, state, begin, begin + stage.steps)
      begin += stage.steps
    assert state is not None
    return state

  def stage(self, stage: Experiment, abstract, state: TrainState, begin: int, end: int) -> TrainState:
    done = int(state.step)
    frozen = place_frozen(stage)
    self.describe(stage, abstract, done)
    if done > begin or (done == 0 and stage.evaluate_first):
      self.evaluate(self.missing(stage, done), stage, state, frozen, done)
    if done >= end:
      return state
    began = time.perf_counter()
    step_fn = compile_step(stage, abstract, frozen)
    self.writer.text(f'Compiled the train step in {time.perf_counter() - began:.1f} s')
    distributed.ready(f'the first step after {done}')  # a collective's own patience with who still compiles is short
    root = jax.random.key(stage.seed)
    batches = stage.data.iterate(done, sharding.batch_sharding(stage.mesh))
    window = StepWindow(stage.data.identity['batch_size'])
    try:
      while done < end:
        batch = window.next(batches)
        state, metrics = step_fn(state, frozen, batch, jax.random.fold_in(root, done))
        done += 1
        window.add(metrics)
        self.after_step(stage, state, frozen, window, done, end)
    finally:
      batches.close()
    return state

  def after_step(self, stage, state, frozen, window, done, end) -> None:
    """Progress, metrics, checkpoint, evaluation: each when it is due.

    A line of metrics goes before whatever a run may go on from, so that none of its steps is lost or counted twice.
    """
    self.writer.progress(done, self.total)
    stopped = self.stop(done)
    saves = done % stage.checkpoints.every == 0 or done == end or stopped
    due = self.due(stage, done)
    tells = done % stage.log_every == 0 or saves or bool(due)
    if tells or done % _MEET_EVERY == 0:
      distributed.ready(f'step {done}')
    if tells:
      values = window.read()
      if self.writer.failures:
        values['observer_failures'] = self.writer.failures
      self.writer.scalars(done, values)
      shown = [name for name in values if name.endswith('loss')] + ['images_per_second', 'input_wait']
      self.writer.progress(done, self.total, {name: values[name] for name in shown if name in values})
      self.check_finite(stage, state, done)
    with window.pause():
      if saves:
        self.save(stage, state, done)
      if stopped:
        self.leave(done)
      self.evaluate(due, stage, state, frozen, done)

  def save(self, stage: Experiment, state: TrainState, done: int) -> None:
    distributed.ready(f'the checkpoint of step {done}')
    self.writer.sync()
    self.checkpoints.save(state, identity(stage, self.record))

  def due(self, stage: Experiment, done: int) -> list[Evaluator]:
    return [evaluator for evaluator in stage.evaluators if done % evaluator.every == 0 or done == self.total]

  def missing(self, stage: Experiment, done: int) -> list[Evaluator]:
    """Of what is due at this step, what is not on record: the run was killed after the step's checkpoint."""
    seen = self.writer.on_record(done)
    return [each for each in self.due(stage, done) if not distributed.agree(int(_clock(each) in seen))]

  def evaluate(self, evaluators: Sequence[Evaluator], stage: Experiment, state: TrainState, frozen, done: int) -> None:
    for evaluator in evaluators:
      distributed.ready(f'{evaluator.name} at step {done}')
      pause = functools.partial(self.pause, stage, state, done)
      began = time.perf_counter()
      values = evaluator.run(Context(done, state, frozen, self.writer, self.workdir, pause))
      values = dict(values) | {_clock(evaluator): time.perf_counter() - began}
      self.writer.scalars(done, values)
      shown = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
      self.writer.text(f'step {done:,}  {shown}')
    if evaluators:
      self.report()

  def report(self) -> None:
    self.writer.observe('the report', lambda: report.write(self.workdir), once=True)

  def pause(self, stage: Experiment, state: TrainState, done: int) -> None:
    if self.stop(done):
      self.save(stage, state, done)
      self.leave(done)

  def leave(self, done: int) -> None:
    self.checkpoints.wait()
    self.writer.text(f'Told to stop: saved at step {done:,}. The same command goes on from there.')
    raise Preempted(f'stopped at step {done}')

  def check_finite(self, stage: Experiment, state: TrainState, done: int) -> None:
    bad = int(state.bad_steps)
    if bad >= stage.max_bad_steps:
      raise RunError(
        f'the last {bad} steps before step {done} were not finite (max_bad_steps {stage.max_bad_steps}); the '
        f'parameters are those before them. Lower the learning rate or clip_norm, or use a wider dtype; the newest '
        f'checkpoint is of step {self.checkpoints.latest()}'
      )

  def describe(self, stage: Experiment, abstract: TrainState, done: int) -> None:
    """A table of the parameters, once, before the first step."""
    from clu import parameter_overview

    if done == 0:
      self.writer.text(
        parameter_overview.get_parameter_overview(abstract.params, include_stats=False), name='parameters'
      )
    mesh = ' x '.join(f'{name} {size}' for name, size in stage.mesh.shape.items() if size > 1) or 'one device'
    self.writer.text(f'{jax.device_count()} {jax.devices()[0].device_kind} device(s): {mesh}')


def _clock(evaluator: Evaluator) -> str:
  """The metric that says how long an evaluation took, and so that it was done."""
  return f'{evaluator.name}/seconds'
