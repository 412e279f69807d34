"""The one train loop. It knows no network, no objective and no dataset.

A run is a pure function of (config, seed, step): the batch of step s comes from the loader's random access, the
randomness of step s is fold_in(key(seed), s), and the state is in the checkpoint. So a run that is killed and
started again is bit-identical, on the same mesh, to one that was not.
"""

import contextlib
import errno
import functools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from jaxgen import distributed, files, goodput, sharding
from jaxgen.best import Best
from jaxgen.checkpoint import Checkpoints
from jaxgen.destination import Destination
from jaxgen.experiment import Experiment, as_stages, stage_of
from jaxgen.goodput import Goodput
from jaxgen.local_checkpoints import Local, LocalCheckpoints
from jaxgen.optimizers import learning_rates
from jaxgen.profiling import Profile, Tracer, memory_if_full
from jaxgen.run import (
  Newest,
  Run,
  RunError,
  check_identity,
  close,
  describe,
  due,
  end_stalled,
  evaluate,
  identity,
  leave_run,
  meet,
  newest,
  not_on_record,
  save,
  save_locally,
  save_now,
  stall_seconds,
  wait_for_saves,
  write_data,
  write_provenance,
)
from jaxgen.signals import Signals, listening
from jaxgen.stage_setup import abstract_state, compile_step, first_state, init_of, place_frozen
from jaxgen.step_window import StepWindow
from jaxgen.train_state import TrainState
from jaxgen.train_step import TrainStep
from jaxgen.watchdog import Waiting, Watchdog
from jaxgen.writer import Writer, silent

_MEET_EVERY = 16  # steps between two meetings of the processes, at most: devices take about 32 before the host waits


def train(
  experiment: Experiment | Sequence[Experiment],
  workdir: str | os.PathLike,
  *,
  record: Mapping[str, Any] | None = None,
  allow_changes: bool = False,
  signals: Signals | None = None,
  profile: Profile | None = None,
  writers: Sequence[Destination] = (),
  local: Local | None = None,
) -> TrainState:
  """Trains until the last step, from the newest checkpoint in `workdir` if there is one.

  Args:
    experiment: the result of `build(config)`; several are stages.
    workdir: the run's folder.
    record: content of config.json: the config's name and its resolved values.
    allow_changes: resumes although dataset, seed, batch size or config are not those of the checkpoint.
    signals: the result of `signals.listening`; by default SIGTERM and Ctrl-C are handled while this runs.
    profile: steps to trace, and a port for profilers.
    writers: other destinations of metrics and pictures, such as `destination.wandb('project')`.
    local: local checkpoints between those of `workdir`.

  Returns:
    The state after the last step.

  Raises:
    ValueError: the experiment cannot run as configured, `workdir` holds another run, or another process uses it.
    RunError: too many steps in a row were not finite, or the disk is full.
    CheckpointError: a checkpoint cannot be read or written.
    Preempted: SIGTERM was received, or no data arrived; the state is saved.
    KeyboardInterrupt: Ctrl-C was received; the state is saved after the first one.
  """
  workdir = epath.Path(workdir).expanduser()
  with contextlib.ExitStack() as stack:
    stack.enter_context(distributed.alone_in(workdir))
    signals = signals or stack.enter_context(listening(sigterm=not distributed.is_distributed()))
    stack.enter_context(memory_if_full(workdir))
    return _train(
      as_stages(experiment), workdir, dict(record or {}), allow_changes, signals, profile or Profile(), writers, local
    )


def _train(
  stages: Sequence[Experiment],
  workdir: epath.Path,
  record: dict[str, Any],
  allow_changes: bool,
  signals: Signals,
  profile: Profile,
  others: Sequence[Destination],
  local: Local | None,
) -> TrainState:
  checkpoints = Checkpoints(workdir / 'checkpoints', stages[0].checkpoints)
  near = LocalCheckpoints(local, workdir) if local else None
  found = newest(checkpoints, near, lambda step: abstract_state(stages[stage_of(stages, step)]))
  start = found.step if found else None
  if found and not allow_changes:
    check_identity(found.identity(), identity(stages[stage_of(stages, found.step)], record), workdir)
  total = sum(stage.steps for stage in stages)
  for evaluator in (evaluator for stage in stages for evaluator in stage.evaluators):
    evaluator.check()
  distributed.ready('the start of the run')
  watchdog = Watchdog(seconds=stall_seconds(stages[0]), end=end_stalled if signals.exits else None)
  signals.rescue = watchdog.rescue
  writer = Writer(workdir, resume_step=start, others=others) if distributed.is_first() else silent()
  clock = Goodput(workdir if distributed.is_first() else None, resume_step=start)
  tracer = Tracer(profile, workdir)
  with writer, watchdog, contextlib.closing(tracer):
    stop = distributed.agreed_stop(signals)
    best = Best(workdir, stages[0].checkpoints.best, resumes=start is not None)
    run = Run(workdir, record, total, writer, checkpoints, best, signals, stop, watchdog, clock, tracer, near)
    for message in checkpoints.lost:
      writer.text(message)
    try:
      state = train_stages(run, stages, found)
      wait_for_saves(run)
    except BaseException as error:
      close(run)
      if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise RunError(
          f'the disk of {workdir} is full: free some space and start again, the run goes on '
          f'{checkpoints.resume_message()}'
        ) from error
      raise
    if near:
      near.remove()
    close(run)
  distributed.ready('the end of the run')
  return state


def train_stages(run: Run, stages: Sequence[Experiment], start: Newest | None) -> TrainState:
  """Trains the stages that are left, from a checkpoint if there is one."""
  first = stage_of(stages, start.step) if start else 0
  state = None
  begin = sum(stage.steps for stage in stages[:first])
  for stage in stages[first:]:
    meet(run, f'the stage from step {begin}')
    init = init_of(stage)
    abstract = abstract_state(stage, init)
    restored = start.restore if state is None and start else None
    with run.goodput.within('init' if restored is None else 'restore'):
      state = first_state(stage, abstract, resume=restored, previous=state, init=init)
    if start and restored is not None:
      run.writer.text(f'Going on from step {start.step:,} of {run.total:,} in {start.folder}')
    run.writer.config(run.record)  # not before the checkpoint is known to be of this config
    write_provenance(run, stage)
    write_data(run, stage)
    state = train_stage(run, stage, abstract, state, begin, begin + stage.steps)
    begin += stage.steps
  assert state is not None
  return state


def train_stage(
  run: Run, stage: Experiment, abstract: TrainState, state: TrainState, begin: int, end: int
) -> TrainState:
  """Trains one stage, whose steps are those after `begin` until `end`."""
  step = int(state.step)
  frozen = place_frozen(stage)
  describe(run, stage, abstract, step)
  if step > begin or (step == 0 and stage.evaluate_first):
    evaluate(run, not_on_record(run, due(stage, step, run.total), step), stage, state, frozen, step)
  if step >= end:
    return state
  with run.goodput.within('compile'):
    step_fn = compiled(run, stage, abstract, frozen, step)
  key = jax.random.key(stage.seed)
  window = StepWindow(stage.data.identity['batch_size'])
  batches = Waiting(stage.data.iterate(step, sharding.batch_sharding(stage.mesh)))
  run.goodput.enter('step')
  with contextlib.closing(batches):
    while step < end:
      run.tracer.step()
      batch = window.next(batches, functools.partial(while_waiting, run, stage, state, window, step))
      with run.watchdog.no_whole_state() as saved_by:
        state, metrics = step_fn(state, frozen, batch, jax.random.fold_in(key, step))
        step += 1
        run.signals.unsaved = run.signals.stepped = True
        saved_by(functools.partial(save_now, run, stage, state) if jax.process_count() == 1 else None)
      run.watchdog.step(step)
      window.add(metrics)
      after_step(run, stage, state, frozen, window, step, end)
  return state


def compiled(run: Run, stage: Experiment, abstract: TrainState, frozen: Any, step: int) -> TrainStep:
  """Compiles the train step; ends the run if a signal to stop came meanwhile."""
  run.watchdog.at('the compilation of the train step')
  began = time.perf_counter()
  step_fn = compile_step(stage, abstract, frozen)
  run.writer.text(f'Compiled the train step in {time.perf_counter() - began:.1f} s')
  meet(run, f'the first step after {step}')  # a collective soon gives up on a process that still compiles
  if run.stop():
    leave_run(run, step)
  return step_fn


def while_waiting(run: Run, stage: Experiment, state: TrainState, window: StepWindow, step: int) -> None:
  """Called while the next batch is not ready: ends the run if a signal to stop came, or if the data has stalled.

  With several processes this does nothing: they stop together after a step, or the watchdog ends them.
  """
  stalled = run.watchdog.stalled
  if distributed.is_distributed() or not (stalled or run.stop()):
    return
  run.watchdog.leaves()
  if run.signals.unsaved:
    record_window(run, window, stage, state, step)
    save(run, stage, state, step)
  leave_run(run, step, stalled)


def after_step(
  run: Run, stage: Experiment, state: TrainState, frozen: Any, window: StepWindow, step: int, end: int
) -> None:
  """Shows progress; writes metrics, saves and evaluates when due.

  Metrics are written before each checkpoint, so that a resumed run neither loses nor repeats a step's metrics.
  """
  run.writer.progress(step, run.total)
  stopped = run.stop()
  if stopped:
    run.watchdog.leaves()
  saves = step % stage.checkpoints.every == 0 or step == end or stopped
  saves_locally = run.local is not None and step % run.local.every == 0 and not saves
  evaluators = due(stage, step, run.total)
  logs = step % stage.log_every == 0 or saves or saves_locally or bool(evaluators)
  if logs or step % _MEET_EVERY == 0:
    window.waited_for_others(distributed.ready(f'step {step}'))
  if logs:
    record_window(run, window, stage, state, step)
    check_finite(run, stage, state, step)
  with window.pause():
    if saves:
      save(run, stage, state, step)
    if saves_locally:
      save_locally(run, stage, state, step)
    if stopped:
      leave_run(run, step)
    evaluate(run, evaluators, stage, state, frozen, step)


def record_window(run: Run, window: StepWindow, stage: Experiment, state: TrainState, step: int) -> None:
  """Writes and shows the metrics of the steps since the last line."""
  if window.is_empty:
    return
  values = window.read() | learning_rates(stage.learning_rates, state.opt_state)
  run.goodput.window(values['step_seconds'], values['input_wait'] * window.seconds)
  values['goodput'] = run.goodput.share
  if bad := getattr(stage.data, 'bad_records', 0):  # a user's own loader may not count them
    values['bad_records'] = bad
  if jax.process_count() > 1 and (shared := distributed.share_seconds(window.own_seconds)):
    values['slowest_process_seconds'] = max(shared.values())
    if slow := window.newly_slow(shared):
      run.writer.text(slow)
  if run.writer.failures:
    values['observer_failures'] = run.writer.failures
  run.writer.scalars(step, values)
  kept = run.goodput.record(step)
  run.writer.observe(goodput.NAME, lambda: files.write_whole(run.workdir / goodput.NAME, kept))
  shown = [name for name in values if name.endswith('loss')] + ['images_per_second', 'input_wait']
  run.writer.progress(step, run.total, {name: values[name] for name in shown if name in values})


def check_finite(run: Run, stage: Experiment, state: TrainState, step: int) -> None:
  bad = int(state.bad_steps)
  if bad >= stage.max_bad_steps:
    raise RunError(
      f'the last {bad} steps before step {step} were not finite (max_bad_steps {stage.max_bad_steps}); the '
      f'parameters are those before them. Lower the learning rate or clip_norm, or use a wider dtype; the newest '
      f'checkpoint is of step {run.checkpoints.latest()}'
    )
