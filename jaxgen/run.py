"""A run: the values that do not change from its first step to its last, and how it saves, evaluates, meets and ends."""

import functools
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxgen import distributed, report
from jaxgen.best import Best
from jaxgen.checkpoint import Checkpoints
from jaxgen.data import licences
from jaxgen.distributed import Interrupted, Preempted
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.experiment import Experiment
from jaxgen.frozen import frozen
from jaxgen.goodput import Goodput
from jaxgen.image_grid import grid, save_png
from jaxgen.local_checkpoints import LocalCheckpoints
from jaxgen.objectives.conditioning import Conditioner
from jaxgen.profiling import Tracer
from jaxgen.signals import EXIT_CODES, Signals, leave
from jaxgen.train_state import TrainState
from jaxgen.watchdog import SAVE_SECONDS, Watchdog
from jaxgen.writer import Writer

_SHOWN = 16  # images of data.png


class RunError(RuntimeError):
  """The run cannot continue; the message says why."""


class Run(NamedTuple):
  """The values that do not change from a run's first step to its last.

  Attributes:
    workdir: the run's folder.
    record: content of config.json.
    total: steps of all stages.
    writer: writes the folder; silent on every process but the first.
    checkpoints: the run's checkpoints.
    best: keeps the best model.
    signals: signals that this process received.
    stop: whether the run must save and end here; all processes must call it equally often.
    watchdog: watches the main thread's progress.
    goodput: measures where the time goes.
    tracer: traces steps, if asked for.
    local: local checkpoints, if asked for.
  """

  workdir: epath.Path
  record: Mapping[str, Any]
  total: int
  writer: Writer
  checkpoints: Checkpoints
  best: Best
  signals: Signals
  stop: Callable[[], bool]
  watchdog: Watchdog
  goodput: Goodput
  tracer: Tracer
  local: LocalCheckpoints | None = None


class Newest(NamedTuple):
  """The checkpoint that a run goes on from.

  Attributes:
    step: its step.
    folder: where it is.
    identity: reads the identity of the run that made it.
    restore: reads it, in the shapes and shardings of an abstract state.
  """

  step: int
  folder: os.PathLike
  identity: Callable[[], Mapping[str, Any]]
  restore: Callable[[TrainState], TrainState]


def newest(
  checkpoints: Checkpoints, local: LocalCheckpoints | None, abstract: Callable[[int], TrainState]
) -> Newest | None:
  """The newest whole checkpoint of the run's folder and of the local disks.

  Args:
    checkpoints: those of the run's folder.
    local: those of the local disks, if there are any.
    abstract: shapes and shardings of the state at a step.
  """
  step = checkpoints.recover()
  nearer = local.recover(abstract, after=-1 if step is None else step) if local else None
  if local and nearer is not None:
    read = functools.partial(local.identity, nearer)
    return Newest(nearer, local.directory, read, functools.partial(local.restore, step=nearer))
  if step is None:
    return None
  folder = checkpoints.directory.parent
  return Newest(step, folder, checkpoints.identity, functools.partial(checkpoints.restore, step=step))


FROZEN = 'frozen_'  # keys of the identity that hold the hashes of frozen networks


def identity(stage: Experiment, record: Mapping[str, Any]) -> dict[str, Any]:
  """The values that must be equal when a run is resumed, as JSON."""
  hashes = {f'{FROZEN}{name}': frozen(network).hash() for name, network in stage.frozen.items()}
  return {'config': record.get('name'), 'run_seed': stage.seed, **hashes} | dict(stage.data.identity)


def check_identity(saved: Mapping[str, Any], now: Mapping[str, Any], workdir: os.PathLike) -> None:
  """Raises ValueError, naming every difference, if a checkpoint belongs to another run."""
  keys = sorted(saved.keys() | now.keys())
  if not any(key.startswith(FROZEN) for key in saved):  # the run of an older version, which did not record them
    keys = [key for key in keys if not key.startswith(FROZEN)]
  different = [key for key in keys if saved.get(key) != now.get(key)]
  if different:
    changes = ', '.join(f'{key} was {saved.get(key)!r}, is {now.get(key)!r}' for key in different)
    raise ValueError(
      f'{workdir} holds another run: {changes}. Use another --workdir, set these back, '
      'or pass --allow-changes to go on all the same'
    )


def save(run: Run, stage: Experiment, state: TrainState, step: int) -> None:
  """Starts a checkpoint on all processes; the metrics up to it are written first."""
  meet(run, f'the checkpoint of step {step}')
  run.writer.sync()
  with run.goodput.within('checkpoint'), run.watchdog.no_whole_state(SAVE_SECONDS):
    run.checkpoints.save(state, identity(stage, run.record))


def save_locally(run: Run, stage: Experiment, state: TrainState, step: int) -> None:
  """Starts a checkpoint of each process on its own disk; the metrics up to it are written first."""
  assert run.local is not None
  meet(run, f'the local checkpoint of step {step}')
  run.writer.sync()
  with run.goodput.within('checkpoint'), run.watchdog.no_whole_state(SAVE_SECONDS):
    run.local.save(state, identity(stage, run.record))


def save_best(run: Run, stage: Experiment, state: TrainState, step: int, values: Mapping[str, float]) -> None:
  """Saves the model if its evaluation is the best so far; called before its values are written."""
  if not run.best.is_better(values):
    return
  meet(run, f'the best model, of step {step}')
  with run.goodput.within('checkpoint'), run.watchdog.no_whole_state(SAVE_SECONDS):
    run.best.save(state, identity(stage, run.record), values)


def save_now(run: Run, stage: Experiment, state: TrainState) -> None:
  """Saves from the watchdog's thread, when the main thread hangs."""
  run.checkpoints.save(state, identity(stage, run.record))
  run.checkpoints.wait()


def wait_for_saves(run: Run) -> None:
  with run.goodput.within('checkpoint'), run.watchdog.no_whole_state(SAVE_SECONDS) as saved_by:
    run.checkpoints.wait()
    saved_by(None)
  run.signals.unsaved = False


def close(run: Run) -> None:
  """Ends all saves, whatever becomes of them, and writes the report."""
  run.best.close()
  run.checkpoints.close()
  if run.local:
    run.local.close()
  write_report(run)


def write_report(run: Run) -> None:
  run.writer.observe('the report', lambda: report.write(run.workdir), once=True)


def write_provenance(run: Run, stage: Experiment) -> None:
  """Writes provenance.json, if the records of the dataset name their licences."""
  dataset = getattr(stage.data, 'dataset', None)

  def write() -> None:
    if dataset is not None and licences.are_named(dataset):
      licences.write_provenance(run.workdir, dataset)

  run.writer.observe('the provenance', write)


def write_data(run: Run, stage: Experiment) -> None:
  """Writes data.png, the first images of the training data, which the report shows beside samples."""
  image = stage.data.spec.get('image')
  if image is None or len(image.shape) != 4 or image.shape[-1] not in (1, 3):
    return  # latents, or no images

  def write() -> None:
    images = stage.data.rows(0, range(min(len(image), _SHOWN)))['image']
    pixels = np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
    save_png(run.workdir / 'data.png', grid(pixels, columns=8))

  run.writer.observe('data.png', write, wait=True)


def leave_run(run: Run, step: int, stalled: str | None = None) -> None:
  """Ends the run at a step whose state is saved, or that has nothing new to save.

  Raises:
    Preempted: the run received SIGTERM, or has stalled.
    Interrupted: the run received Ctrl-C.
  """
  wait_for_saves(run)
  why = f'No data: {stalled}' if stalled else 'Told to stop'
  run.writer.text(f'{why}: saved at step {step:,}. The same command goes on from there.')
  raise (Interrupted if run.signals.received == signal.SIGINT else Preempted)(f'stopped at step {step}')


def meet(run: Run, phase: str) -> None:
  """Waits for all processes before a collective operation."""
  run.watchdog.at(phase)
  distributed.ready(phase)


def due(stage: Experiment, step: int, total: int) -> list[Evaluator]:
  """The evaluators that run after a step."""
  return [evaluator for evaluator in stage.evaluators if step % evaluator.every == 0 or step == total]


def not_on_record(run: Run, evaluators: Sequence[Evaluator], step: int) -> list[Evaluator]:
  """The evaluators whose results are missing, because the run was killed after the step's checkpoint."""
  seen = run.writer.on_record(step)
  return [each for each in evaluators if not distributed.agree(int(each.clock in seen))]


def evaluate(
  run: Run, evaluators: Sequence[Evaluator], stage: Experiment, state: TrainState, frozen: Any, step: int
) -> None:
  """Runs evaluators and writes their metrics; ends the run between two evaluators if it got a signal to stop."""

  def pause() -> None:
    run.watchdog.at(f'an evaluation at step {step}')
    if run.stop():
      if run.signals.unsaved:
        save(run, stage, state, step)
      leave_run(run, step)

  for evaluator in evaluators:
    meet(run, f'{evaluator.name} at step {step}')
    began = time.perf_counter()
    with run.goodput.within('evaluation'):
      values = evaluator.run(Context(step, state, frozen, run.writer, run.workdir, pause))
    seconds = time.perf_counter() - began
    save_best(run, stage, state, step, values)
    run.writer.scalars(step, dict(values) | {evaluator.clock: seconds})
    whole = {name: value for name, value in values.items() if '/' not in name} or values  # without each attribute's
    shown = '  '.join(f'{name} {value:.4g}' for name, value in whole.items())
    run.writer.text(f'step {step:,}  {evaluator.name} took {seconds:.1f} s  {shown}'.rstrip())
  if evaluators:
    write_report(run)


def describe(run: Run, stage: Experiment, abstract: TrainState, step: int) -> None:
  """Prints one summary of the training; before the first step, also writes the table of parameters to a file."""
  from clu import parameter_overview

  if step == 0:
    table = parameter_overview.get_parameter_overview(abstract.params, include_stats=False)
    run.writer.text(table, name='parameters', shown=False)
  counts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in abstract.params.items()}
  mesh = ' x '.join(f'{name} {size}' for name, size in stage.mesh.shape.items() if size > 1) or 'one device'
  lines = {
    'data': about_data(stage.data, stage.objective.conditioner),
    'batch': f'{stage.data.identity["batch_size"]:,}, {stage.steps:,} steps',
    'parameters': ', '.join(f'{name} {count:,}' for name, count in counts.items()),
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}, {mesh}',
    'folder': os.fspath(run.workdir),
  }
  title = f'Training {run.record.get("name") or "an experiment"}, {step:,} of {run.total:,} steps done'
  run.writer.text('\n'.join([title, *(f'  {name:12}{value}' for name, value in lines.items())]))


def about_data(data: Any, conditioner: Conditioner) -> str:
  """What a run trains on, and whether its model is unconditional."""
  conditional = conditioner.fields or 'label' in data.spec
  return getattr(data, 'about', 'unnamed') + ('' if conditional else '; no classes: training unconditionally')


def stall_seconds(stage: Experiment) -> float | None:
  """JAXGEN_STALL_SECONDS of the environment, else the experiment's; 0 turns the watchdog off."""
  text = os.environ.get('JAXGEN_STALL_SECONDS')
  if not text:
    return stage.stall_seconds
  if not text.isdecimal():
    raise ValueError(f'JAXGEN_STALL_SECONDS is {text!r}; it must be a whole number of seconds, or 0 for no watching')
  return float(text) or None


def end_stalled(why: str, saved: bool) -> None:
  """Ends the program from the watchdog's thread: exit code 75 if all is saved, else an error on all processes."""
  if saved:
    leave(EXIT_CODES[signal.SIGTERM], f'{why}; what was done is saved, and the same command goes on from there')
  distributed.fail(RunError(f'{why}{distributed.where_all_are()}'))
  leave(1, f'{why}; what came after the newest checkpoint is lost, and the same command goes on from there')
