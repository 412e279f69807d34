"""Checkpoints: asynchronous, sharded, committed or absent.

A checkpoint is a folder `STEP/` with one Orbax item for each part of the state (`params`, `ema`, `opt_state`,
`extra`, `counters`) and `identity`, the JSON of what must not change when a run goes on. Sampling reads `params` and
`ema` alone. Arrays are restored straight into the shardings asked for, so the mesh and the number of processes may
differ from those that saved.
"""

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxgen.train_state import TrainState

PARTS = ('params', 'ema', 'opt_state', 'extra')
MODEL = ('params', 'ema', 'extra')


class Policy(NamedTuple):
  """When to save, and what stays.

  Attributes:
    every: steps between two checkpoints; the last step is always saved.
    keep: how many of the newest stay.
    keep_every: steps that are multiples of this stay for good; None for none.
  """

  every: int = 1000
  keep: int = 2
  keep_every: int | None = None


class CheckpointError(RuntimeError):
  """A checkpoint cannot be written or read; the message says which, and what to do."""


class Checkpoints:
  """The checkpoints of one run, in `directory`."""

  def __init__(self, directory: str | os.PathLike, policy: Policy | None = None):
    """With `policy` None the folder is only read."""
    logging.getLogger('absl').addFilter(_is_not_orbax)
    self.directory = epath.Path(directory)
    self.policy = policy
    options = ocp.CheckpointManagerOptions(
      max_to_keep=policy.keep if policy else None,
      keep_period=policy.keep_every if policy else None,
      create=policy is not None,
      read_only=policy is None,
      enable_async_checkpointing=policy is not None,
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

  def going_on(self) -> str:
    """Where a run that starts again goes on, for messages."""
    return 'from the start' if self.latest() is None else f'from step {self.latest()}'

  def save(self, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Starts a save and returns when the arrays are copied to the host; nothing is done where the step is there.

    Raises:
      CheckpointError: this save, or the one before it in the background, failed.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    items = {part: ocp.args.StandardSave(getattr(state, part)) for part in PARTS if getattr(state, part)}
    counters = {'step': state.step, 'bad_steps': state.bad_steps}
    try:
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
      f'a checkpoint (last asked for: step {step}) could not be saved in {self.directory}: {_first_line(error)}; '
      f'{advice} and start again, the run goes on {self.going_on()}'
    )

  def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
    """The state at `step` (the newest by default), in the shapes, dtypes and shardings of `abstract`.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      CheckpointError: it is damaged, or is of another network or optimizer.
    """
    step = self._existing(step)
    parts = {part: getattr(abstract, part) for part in PARTS if getattr(abstract, part)}
    parts['counters'] = {'step': abstract.step, 'bad_steps': abstract.bad_steps}
    restored = self._read(step, parts)
    return abstract.replace(**restored.pop('counters'), **restored)

  def restore_model(self, abstract: TrainState, step: int | None = None) -> TrainState:
    """As `restore`, but reads only what is sampled with; the rest of `abstract` stays as it is."""
    step = self._existing(step)
    parts = {part: getattr(abstract, part) for part in MODEL if getattr(abstract, part)}
    return abstract.replace(**self._read(step, parts), step=np.int32(step))

  def identity(self, step: int | None = None) -> dict[str, Any]:
    """What the run at `step` was, as given to `save`."""
    step = self._existing(step)
    try:
      return self._manager.restore(step, args=ocp.args.Composite(identity=ocp.args.JsonRestore()))['identity']
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
    try:
      self._check_shapes(step, parts)
      args = {name: ocp.args.StandardRestore(tree) for name, tree in parts.items()}
      return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
    except CheckpointError:
      raise
    except Exception as error:
      raise self._read_error(step, error) from error

  def _check_shapes(self, step: int, parts: Mapping[str, Any]) -> None:
    """Orbax would pad or cut an array of another shape; a checkpoint of another network is an error instead."""
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
          'use the config that made this run, or another --workdir'
        )

  def _read_error(self, step: int, error: Exception) -> CheckpointError:
    older = [s for s in self.steps() if s < step]
    then = f'from step {older[-1]}' if older else 'from the start'
    return CheckpointError(
      f'checkpoint {self.directory / str(step)} is damaged and cannot be read ({_first_line(error)}); '
      f'delete that folder and the run goes on {then}'
    )

  def close(self) -> None:
    """Waits for a save that is under way and ends the manager; only `save` and `wait` tell of what failed."""
    with contextlib.suppress(Exception):
      self._manager.close()


def _is_not_orbax(record: logging.LogRecord) -> bool:
  """Orbax tells of every file that it writes, and with a traceback of each error that `save` and `wait` raise."""
  return 'orbax' not in record.pathname


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(getattr(tree, 'tree', tree))
  return {_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _name(path: Sequence[Any]) -> str:
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def _first_line(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
