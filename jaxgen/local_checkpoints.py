"""Local checkpoints: each process writes what its devices hold to a disk of its own machine, every few minutes, so that
the run's folder, perhaps in a bucket, can be written rarely.

A run that starts again goes on from the newest step that is whole in its folder or on the local disks, where it is

  if every process finds its own files of it, with right digests, and they hold what its devices are to hold
  or if the processes of one copy of the state do, as with `data` across slices; they send it to the others

Otherwise, as where a machine was replaced or the mesh has changed, the run's folder is what counts. A process has its
checkpoints in PATH/TOKEN/process_I. The token is a random one of the run (RUN/local_checkpoints.json), so a run that
was begun anew finds none.

Orbax writes them, as its emergency checkpoints do theirs. Those themselves want two slices at least, one tree, and
write nothing on the machines of the first slice.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from jaxgen import digests, distributed, sharding
from jaxgen.checkpoint import COMMIT_FILES, PARTS, CheckpointError, copies_apart, first_line, newest_step
from jaxgen.files import write_whole
from jaxgen.train_state import TrainState

TOKEN = 'local_checkpoints.json'
_NOTE = 'note.json'
_KEEP = 2


class Local(NamedTuple):
  """Where and how often each process keeps a checkpoint of its own.

  Attributes:
    path: a folder on a disk of each machine.
    every: steps between two local checkpoints.
  """

  path: str
  every: int


class LocalCheckpoints:
  """The local checkpoints of one run; every process makes one, and calls each method together with the others."""

  def __init__(self, local: Local, workdir: str | os.PathLike):
    if local.every < 1:
      raise ValueError(f'local checkpoints every {local.every} steps; it must be 1 or more')
    self.every = local.every
    self.directory = _folder(local, _token(epath.Path(workdir)))
    self._source: int | None = None  # the copy of the state that sends it to the others; None where each reads its own
    self._saving: tuple[int, dict[str, Any]] | None = None
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise ValueError(f'local checkpoints cannot be kept in {local.path}: {error.strerror}') from error
    for left in self.directory.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(left, ignore_errors=True)
    # Without a primary process each makes, writes and commits its own folder; they wait for one another.
    self._processes = ocp.options.MultiprocessingOptions(primary_host=None, barrier_sync_key_prefix='local')
    options = ocp.CheckpointManagerOptions(
      max_to_keep=_KEEP,
      create=False,
      cleanup_tmp_directories=False,
      multiprocessing_options=self._processes,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_note),
      enable_background_delete=False,
      save_root_metadata=False,
      enable_per_process_directory_creation=True,
      step_name_format=ocp.path.step.standard_name_format(),
    )
    self._manager = ocp.CheckpointManager(
      epath.Path(self.directory), options=options, item_handlers={'state': self._handler(self._processes)}
    )

  @staticmethod
  def _handler(processes: ocp.options.MultiprocessingOptions) -> ocp.PyTreeCheckpointHandler:
    every_shard = ocp.type_handlers.ArrayHandler(primary_host=None, replica_id=None, use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, every_shard))
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=processes, type_handler_registry=registry)

  def save(self, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Starts a save and returns when the arrays are copied to the host.

    Raises:
      CheckpointError: this save, or the one before it in the background, failed.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    try:
      self._manager.wait_until_finished()
      self._saving = step, {'identity': dict(identity), 'holds': _held(state)}
      args = ocp.args.Composite(state=ocp.args.PyTreeSave(_tree(state)))
      self._manager.save(step, args=args, force=True)
    except Exception as error:
      raise self._save_error(error) from error

  def wait(self) -> None:
    """Returns when every save is committed.

    Raises:
      CheckpointError: a save failed.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._save_error(error) from error

  def _save_error(self, error: Exception) -> CheckpointError:
    return CheckpointError(
      f'a local checkpoint could not be saved in {self.directory}: {first_line(error)}; free some space, or leave out '
      '--local-checkpoints, and start again'
    )

  def _write_note(self) -> None:
    """Called in the background between the last file of a checkpoint and its commit."""
    assert self._saving is not None
    step, note = self._saving
    for folder in self.directory.glob(f'{step}.*tmp*'):
      write_whole(folder / _NOTE, json.dumps(note))
      digests.write(folder, without=COMMIT_FILES)

  def recover(self, abstract: Callable[[int], TrainState], *, after: int) -> int | None:
    """The newest whole step beyond `after`; None if there is none.

    Args:
      abstract: shapes and shardings of the state at a step.
      after: newest step of the run's folder, or -1.
    """
    mine = {step for step in self._manager.all_steps() if step > after and self._is_whole(step)}
    for step in sorted(_union(mine), reverse=True):
      like = abstract(step)
      has = step in mine and self._note(step)['holds'] == _held(like)
      owners = _gathered(np.int32(has)).astype(bool)
      if owners.all():
        self._source = None
        return step
      tree = _tree(like)
      if copies_apart(tree):
        devices = sharding.copies(jax.tree.leaves(tree)[0].sharding)
        whole = [all(owners[device.process_index] for device in copy.flat) for copy in devices]
        if any(whole):
          self._source = whole.index(True)
          logging.warning('copy %d of the state sends local checkpoint %d to the others', self._source, step)
          return step
    return None

  def _is_whole(self, step: int) -> bool:
    folder = self.directory / str(step)
    try:
      return digests.has(folder) and digests.problem(folder) is None
    except OSError as error:  # a disk that fails is as good as a new one
      logging.warning('local checkpoint %s cannot be read (%s)', folder, error)
      return False

  def _note(self, step: int) -> dict[str, Any]:
    return json.loads((self.directory / str(step) / _NOTE).read_text(encoding='utf-8'))

  def identity(self, step: int) -> dict[str, Any]:
    """The identity of the run, as a process that has the step was given it."""
    own = json.dumps(self._note(step)['identity']).encode() if (self.directory / str(step) / _NOTE).exists() else b''
    sizes = _gathered(np.int32(len(own)))
    texts = _gathered(np.frombuffer(own.ljust(int(sizes.max())), np.uint8))
    return json.loads(texts[int(np.argmax(sizes > 0))].tobytes())

  def restore(self, abstract: TrainState, step: int) -> TrainState:
    """The state that `recover` found, in the shapes and shardings of `abstract`."""
    tree = _tree(abstract)
    try:
      made = self._read(step, tree) if self._source is None else self._sent(step, tree, self._source)
    except Exception as error:
      raise CheckpointError(
        f'local checkpoint {self.directory / str(step)} could not be restored ({first_line(error)}); delete it, and '
        'the run goes on from its folder'
      ) from error
    return abstract.replace(**made.pop('counters'), **made)

  def _read(self, step: int, tree: Any, processes: ocp.options.MultiprocessingOptions | None = None) -> Any:
    args = ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
    handler = self._handler(processes or self._processes)
    with contextlib.closing(handler):
      return handler.restore(epath.Path(self.directory / str(step) / 'state'), args=args)

  def _sent(self, step: int, tree: Any, source: int) -> Any:
    """The state as one copy reads it, sent to the others: all but that one add zeros to its bits."""
    devices = sharding.copies(jax.tree.leaves(tree)[0].sharding)
    owners = {device.process_index for device in devices[source].flat}
    own: Any = jax.tree.map(lambda leaf: None, tree)
    if jax.process_index() in owners:
      place = lambda leaf: sharding.on_copy(leaf.sharding, source)  # noqa: E731
      like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), tree)
      processes = ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes=owners, barrier_sync_key_prefix='local-source'
      )
      own = self._read(step, like, processes)

    def send(leaf: jax.ShapeDtypeStruct, read: jax.Array | None) -> jax.Array:
      assert isinstance(leaf.sharding, NamedSharding)
      place, shape = sharding.stacked_copies(leaf.sharding), (len(devices), *leaf.shape)
      have = {} if read is None else {shard.device: shard.data for shard in read.addressable_shards}
      parts = []
      for device in place.addressable_devices_indices_map(shape):
        part = place.shard_shape(shape)
        parts.append(
          jax.device_put(have[device].reshape(part) if device in have else np.zeros(part, leaf.dtype), device)
        )
      stacked = jax.make_array_from_single_device_arrays(shape, place, parts)
      return jax.jit(_sum_of_bits, out_shardings=leaf.sharding)(stacked)

    return jax.tree.map(send, tree, own, is_leaf=lambda leaf: leaf is None)

  def close(self) -> None:
    """Waits for a running save; only `save` and `wait` report failures."""
    with contextlib.suppress(Exception):
      self._manager.close()

  def remove(self) -> None:
    """Deletes this process's local checkpoints, of a run that has come to its end."""
    self.close()
    shutil.rmtree(self.directory, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process of this machine has files there
      self.directory.parent.rmdir()


def newest_local_step(local: Local, workdir: str | os.PathLike) -> int:
  """The newest step that this process has on its disk, of the run in `workdir`; -1 without one. It opens nothing."""
  found = _written_token(epath.Path(workdir))
  return newest_step(_folder(local, f'{found:08x}')) if found else -1


def _folder(local: Local, token: str) -> pathlib.Path:
  return pathlib.Path(local.path).expanduser().absolute() / token / f'process_{jax.process_index()}'


def _written_token(workdir: epath.Path) -> int:
  """The run's token; 0 where it has none yet, or a damaged one."""
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    return int(json.loads((workdir / TOKEN).read_text())['token'], 16)
  return 0


def _token(workdir: epath.Path) -> str:
  """The run's token, the same on all processes; made at its first start."""
  path, found = workdir / TOKEN, 0
  if distributed.is_first():
    found = _written_token(workdir)
    if not found:
      found = secrets.randbits(30) | 1
      workdir.mkdir(parents=True, exist_ok=True)
      write_whole(path, json.dumps({'token': f'{found:08x}'}))
  return f'{distributed.agree(found):08x}'


def _tree(state: TrainState) -> dict[str, Any]:
  parts = {part: getattr(state, part) for part in PARTS if getattr(state, part)}
  return parts | {'counters': {'step': state.step, 'bad_steps': state.bad_steps}}


def _held(state: TrainState) -> str:
  """A hash of the ranges of all arrays that this process's devices hold."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(_tree(state)):
    ranges = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    held = sorted({str([part.indices(size) for part, size in zip(index, leaf.shape, strict=True)]) for index in ranges})
    digest.update(f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {held}\n'.encode())
  return digest.hexdigest()


def _sum_of_bits(copies: jax.Array) -> jax.Array:
  bits = {2: jnp.uint16, 4: jnp.uint32}.get(copies.dtype.itemsize)
  if bits is None:
    return jnp.sum(copies, axis=0, dtype=copies.dtype)
  whole = jnp.sum(jax.lax.bitcast_convert_type(copies, bits), axis=0, dtype=bits)
  return jax.lax.bitcast_convert_type(whole, copies.dtype)


def _gathered(value: Any) -> np.ndarray:
  """The value of each process, in order."""
  if jax.process_count() == 1:
    return np.asarray(value)[None]
  return np.asarray(multihost_utils.process_allgather(value))


def _union(steps: set[int]) -> set[int]:
  """The steps that any process has; each has `_KEEP` at most, and one that it was to delete."""
  own = np.full(_KEEP + 2, -1, np.int32)
  newest = sorted(steps)[-len(own) :]
  own[: len(newest)] = newest
  return set(map(int, _gathered(own).ravel())) - {-1}
