"""Checkpoints: asynchronous, sharded, committed or absent.

A checkpoint is a folder `STEP/` with one Orbax item for each part of the state (`params`, `ema`, `opt_state`,
`extra`, `counters`) and `identity`, the JSON of what must be equal when a run is resumed. Sampling reads `params` and
`ema` only. Arrays are restored directly into the requested shardings, so the mesh and the number of processes may
differ from those that saved them.

Where each copy of the state is on processes of its own, as with `data` across slices, the processes of the first copy
alone read, and send it to the others: a bucket is read once, whatever the number of slices. (They send by adding zeros,
so that a negative zero becomes zero.)

On a disk a checkpoint also holds the digests of its files (digests.py), written in the background before it is
committed, and checked before it is restored. They are digests of files, not of arrays, so a restore on any mesh checks
all that it reads. A bucket has none: object stores check their own data.
"""

import contextlib
import functools
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from jaxgen import digests
from jaxgen.files import in_bucket
from jaxgen.sharding import axes_of
from jaxgen.train_state import TrainState
from jaxgen.writer import written_by

PARTS = ('params', 'ema', 'opt_state', 'extra')
MODEL = ('params', 'ema', 'extra')
_FORMER_EDM = re.compile(r'(block\d+|up|down|in\d)/(norm2|qkv|proj)/')  # these are in `attention/` now
_SENT = ('float32', 'bfloat16', 'float16', 'int32', 'uint32')  # dtypes that a sum preserves
COMMIT_FILES = ('commit_success.txt', '_CHECKPOINT_METADATA')  # Orbax writes them after the digests


class Policy(NamedTuple):
  """When to save, and which checkpoints to keep.

  Attributes:
    every: steps between two checkpoints; the last step is always saved.
    keep: number of the newest checkpoints to keep.
    keep_every: checkpoints of steps that are multiples of this are kept for good; None for none.
    best: name of a metric, lower is better, whose best model is kept in RUN/best (best.py); None for none.
  """

  every: int = 1000
  keep: int = 2
  keep_every: int | None = None
  best: str | None = 'fid'


class CheckpointError(RuntimeError):
  """A checkpoint cannot be written or read; the message says which, and what to do."""


class Checkpoints:
  """The checkpoints of one run, in `directory`."""

  def __init__(self, directory: str | os.PathLike, policy: Policy | None = None):
    """Opens the folder; read-only if `policy` is None."""
    logging.getLogger('absl').addFilter(_is_not_orbax)
    self.directory = epath.Path(directory)
    self.policy = policy
    self.lost: list[str] = []  # messages about checkpoints that `recover` found damaged
    self._saving: int | None = None
    self._checked: set[int] = set()  # steps whose digests were checked
    options = ocp.CheckpointManagerOptions(
      max_to_keep=policy.keep if policy else None,
      keep_period=policy.keep_every if policy else None,
      create=policy is not None,
      read_only=policy is None,
      enable_async_checkpointing=policy is not None,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests) if policy else None,
      step_name_format=ocp.path.step.standard_name_format(),
    )
    handlers: dict[str, ocp.CheckpointHandler] = {part: ocp.StandardCheckpointHandler() for part in PARTS}
    handlers |= {'counters': ocp.StandardCheckpointHandler(), 'identity': ocp.JsonCheckpointHandler()}
    # epath takes a gs:// path for a relative one when it is asked to make it absolute.
    directory = self.directory if self.directory.is_absolute() else self.directory.absolute()
    self._manager = ocp.CheckpointManager(directory, options=options, item_handlers=handlers)

  def steps(self) -> list[int]:
    """The committed steps, in order."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    return self._manager.latest_step()

  def resume_message(self) -> str:
    """Where a restarted run will resume, for messages."""
    return 'from the start' if self.latest() is None else f'from step {self.latest()}'

  def save(self, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Starts a save and returns when the arrays are copied to the host; does nothing if the step is saved already.

    Raises:
      CheckpointError: this save, or the one before it in the background, failed.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    items = {part: ocp.args.StandardSave(getattr(state, part)) for part in PARTS if getattr(state, part)}
    counters = {'step': state.step, 'bad_steps': state.bad_steps}
    try:
      self._manager.wait_until_finished()  # `save` would do so first; `_saving` is still the step of the save before
      self._saving = step
      self._manager.save(
        step,
        args=ocp.args.Composite(
          **items,
          counters=ocp.args.StandardSave(counters),
          identity=ocp.args.JsonSave(dict(identity)),
        ),
        force=True,
      )
    except Exception as error:
      raise self._save_error(step, error) from error

  def wait(self) -> None:
    """Returns when every save is committed.

    Raises:
      CheckpointError: a save failed.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._save_error(self.latest(), error) from error

  def _save_error(self, step, error: Exception) -> CheckpointError:
    full = 'No space left' in str(error)
    advice = 'the disk is full: free some space' if full else 'see the cause above'
    return CheckpointError(
      f'a checkpoint (last asked for: step {step}) could not be saved in {self.directory}: {first_line(error)}; '
      f'{advice} and start again, the run goes on {self.resume_message()}'
    )

  def _write_digests(self) -> None:
    """Called by the first process, in the background, between the last file of a checkpoint and its commit."""
    if not in_bucket(self.directory):
      for folder in pathlib.Path(self.directory).glob(f'{self._saving}.*tmp*'):
        digests.write(folder, without=COMMIT_FILES)

  def recover(self) -> int | None:
    """The newest step whose digests match; None without checkpoints.

    Damaged ones that are newer are renamed to `STEP.damaged`, and `lost` says so. All processes call it together,
    before anything is restored.

    Raises:
      CheckpointError: a checkpoint cannot be read for another reason than damage.
    """
    for step in reversed(self.steps()):
      wrong = self._damage(step)
      if wrong is None:
        return step
      older = [before for before in self.steps() if before < step]
      then = f'{step - older[-1]} steps are trained again, from step {older[-1]}' if older else 'the run starts again'
      aside = self._set_aside(step)
      self.lost.append(f'checkpoint {step} is damaged ({wrong}); it is kept as {aside}, and {then}')
      logging.warning('%s', self.lost[-1])
    return None

  def _damage(self, step: int, below: Sequence[str] | None = None) -> str | None:
    """The problem with the files of a checkpoint, the same on every process; None if there is none or no digests."""
    folder = pathlib.Path(self.directory) / str(step)
    if in_bucket(self.directory) or not digests.has(folder):
      return None
    try:
      wrong = digests.problem(folder, below=below, share=(jax.process_index(), jax.process_count()))
    except OSError as error:
      raise self._read_error(step, error) from error
    if jax.process_count() > 1:
      others = np.asarray(multihost_utils.process_allgather(np.int32(wrong is not None)))
      wrong = wrong or ('another process found it so' if others.any() else None)
    if wrong is None and below is None:
      self._checked.add(step)
    return wrong

  def _set_aside(self, step: int) -> epath.Path:
    """Renames a checkpoint's folder, so that it no longer counts as one."""
    number = len(list(self.directory.glob(f'{step}.damaged*')))
    aside = self.directory / f'{step}.damaged{f".{number}" if number else ""}'
    if jax.process_index() == 0:
      (self.directory / str(step)).rename(aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'checkpoint {step} set aside')
    self._manager.reload()
    return aside

  def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
    """The state at `step` (the newest by default), in the shapes, dtypes and shardings of `abstract`.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      CheckpointError: it is damaged, or belongs to another network or optimizer.
    """
    step = self._existing(step)
    parts = {part: getattr(abstract, part) for part in PARTS if getattr(abstract, part)}
    parts['counters'] = {'step': abstract.step, 'bad_steps': abstract.bad_steps}
    restored = self._read(step, parts)
    return abstract.replace(**restored.pop('counters'), **restored)

  def restore_model(self, abstract: TrainState, step: int | None = None) -> TrainState:
    """As `restore`, but reads only what sampling needs; the rest of `abstract` stays as it is."""
    step = self._existing(step)
    parts = {part: getattr(abstract, part) for part in MODEL if getattr(abstract, part)}
    return abstract.replace(**self._read(step, parts), step=np.int32(step))

  def model(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and averages on the host's CPU, in the shapes in which they were saved, for any network."""
    step = self._existing(step)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
    saved = {part: self._manager.item_metadata(step)[part] for part in ('params', 'ema')}
    like = {
      part: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype, sharding=place), getattr(tree, 'tree', tree)
      )
      for part, tree in saved.items()
      if tree is not None
    }
    found = self._read(step, like)
    return found['params'], found.get('ema', {})

  def identity(self, step: int | None = None) -> dict[str, Any]:
    """The identity of the run at `step`, as given to `save`."""
    step = self._existing(step)
    try:
      args = ocp.args.Composite(identity=ocp.args.JsonRestore())
      return digests.patiently(functools.partial(self._manager.restore, step, args=args))['identity']
    except Exception as error:
      raise self._read_error(step, error) from error

  def _existing(self, step: int | None) -> int:
    steps = self.steps()
    if not steps:
      raise FileNotFoundError(f'no checkpoint in {self.directory}; train first, or give the folder of a run')
    if step is not None and step not in steps:
      raise FileNotFoundError(f'no checkpoint of step {step} in {self.directory}; there are {steps}')
    return steps[-1] if step is None else step

  def _read(self, step: int, parts: Mapping[str, Any]) -> dict[str, Any]:
    wrong = None if step in self._checked else self._damage(step, list(parts))
    if wrong is not None:
      raise CheckpointError(self._damaged(step, wrong))
    try:
      digests.patiently(functools.partial(self._check_shapes, step, parts))
      if copies_apart(parts):
        return {name: self._read_once(step, name, tree) for name, tree in parts.items()}
      args = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in parts.items()})
      restored = digests.patiently(functools.partial(self._manager.restore, step, args=args))
      return {name: restored[name] for name in parts}
    except CheckpointError:
      raise
    except Exception as error:
      raise self._read_error(step, error) from error

  def _read_once(self, step: int, name: str, tree: Any) -> Any:
    """A part of the state, read by the first of several copies and sent to the others."""
    registry = ocp.type_handlers.create_type_handler_registry(
      (jax.Array, ocp.type_handlers.SingleReplicaArrayHandler(replica_axis_index=0))
    )
    args = jax.tree.map(
      lambda leaf: ocp.type_handlers.SingleReplicaArrayRestoreArgs(
        sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
      ),
      tree,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as reader:
      wanted = ocp.args.PyTreeRestore(item=tree, restore_args=args)
      return reader.restore(self.directory / str(step) / name, args=wanted)

  def _check_shapes(self, step: int, parts: Mapping[str, Any]) -> None:
    """Raises for a checkpoint of another network, whose arrays Orbax would pad or cut to fit."""
    saved = self._manager.item_metadata(step)
    for name, tree in parts.items():
      tree_of_saved = saved[name]
      if tree_of_saved is None:
        raise CheckpointError(f'checkpoint {step} in {self.directory} holds no {name!r}')
      have = _shapes(tree_of_saved)
      want = _shapes(tree)
      different = sorted(key for key in have.keys() | want.keys() if have.get(key) != want.get(key))
      if different:
        key = different[0]
        raise CheckpointError(
          f'checkpoint {step} in {self.directory} is of another network or optimizer: {len(different)} arrays '
          f'differ, first {name}/{key}: got {have.get(key, "none")}, wanted {want.get(key, "none")}; '
          + _remedy(different, have)
          + written_by(self.directory.parent)
        )

  def _read_error(self, step: int, error: Exception) -> CheckpointError:
    folder = self.directory / str(step)
    if digests.is_passing(error):
      return CheckpointError(
        f'checkpoint {folder} could not be read ({first_line(error)}), tried {len(digests.WAITS) + 1} times; this is '
        'no damage and nothing was changed: see to the disk or its permissions and start again'
      )
    if step in self._checked:
      return CheckpointError(
        f'checkpoint {folder} could not be restored ({first_line(error)}), although its files are as they were '
        'written; use the jaxgen and the machine that made it, or another --workdir'
      )
    return CheckpointError(self._damaged(step, first_line(error)))

  def _damaged(self, step: int, wrong: str) -> str:
    older = [s for s in self.steps() if s < step]
    then = f'from step {older[-1]}' if older else 'from the start'
    return (
      f'checkpoint {self.directory / str(step)} is damaged and cannot be read ({wrong}); '
      f'delete that folder and the run goes on {then}'
    )

  def close(self) -> None:
    """Waits for a running save and closes the manager; only `save` and `wait` report failures."""
    with contextlib.suppress(Exception):
      self._manager.close()


def copies_apart(tree: Any) -> bool:
  """Whether the first axis of the mesh holds whole copies of all arrays, each on processes of its own."""
  leaves = jax.tree.leaves(tree)
  places = [leaf.sharding for leaf in leaves]
  if jax.process_count() == 1 or not all(isinstance(place, jax.sharding.NamedSharding) for place in places):
    return False
  mesh = places[0].mesh
  owners = [{device.process_index for device in copy.flat} for copy in mesh.devices]
  return (
    len(owners) > 1
    and sum(map(len, owners)) == len(set[int]().union(*owners))
    and all(place.mesh == mesh and mesh.axis_names[0] not in axes_of(place) for place in places)
    and all(leaf.dtype in _SENT for leaf in leaves)
  )


def newest_step(directory: str | os.PathLike) -> int:
  """The newest committed step, by the folders' names; -1 for none. Fast, without Orbax."""
  folder = epath.Path(directory)
  if not folder.is_dir():
    return -1
  steps = [path for path in folder.iterdir() if path.name.isdecimal()]
  if in_bucket(folder):  # where a folder has its name before it is complete
    steps = [path for path in steps if (path / 'commit_success.txt').exists()]
  return max((int(path.name) for path in steps), default=-1)


def _is_not_orbax(record: logging.LogRecord) -> bool:
  """Filters Orbax's log: every file written, and tracebacks of errors that `save` and `wait` raise anyway."""
  return 'orbax' not in record.pathname


def _remedy(different: Sequence[str], have: Mapping[str, Any]) -> str:
  """Advice for a checkpoint whose arrays differ from those of the config."""
  if any(_FORMER_EDM.search(key) for key in different if key in have):
    return 'an older jaxgen wrote it, whose EDM U-Net had no module `attention`: use a version before commit efd0106'
  return 'use the config that made this run, or another --workdir'


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(getattr(tree, 'tree', tree))
  return {_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _name(path: Sequence[Any]) -> str:
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def first_line(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
