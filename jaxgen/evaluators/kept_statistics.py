"""Statistics of many features, kept on disk once a minute, so that a killed evaluation continues where it was.

The file is an .npz in the run's folder or in ~/.cache/jaxgen (JAXGEN_HOME), gone when the work is done. It holds all
numbers to the last bit, so that the result is that of an evaluation which was never killed.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float

from jaxgen import npz_file
from jaxgen.files import replacing
from jaxgen.home import mirror
from jaxgen.metrics.statistics import FeatureStatistics

_EVERY = 60.0  # seconds between two writes


class KeptStatistics:
  """A FeatureStatistics that grows with images in order, and begins with what an earlier, killed one has kept.

  Args:
    path: its file, for one in a bucket that of this machine's mirror; None keeps nothing, as on every process but the
      first.
    about: all that the features depend on, as JSON: those of other parameters, seeds or networks are never taken.
  """

  def __init__(self, path: str | os.PathLike | None, *, about: Mapping[str, Any]):
    self.statistics, self.done = FeatureStatistics(), 0  # images that were taken in, with those that were left out
    self._path = None if path is None else mirror(path)
    self._about = json.dumps(dict(about), sort_keys=True, default=str)
    self._written = time.monotonic()
    if self._path is not None and self._path.exists():
      self._read(self._path)

  def update(self, features: Float[np.ndarray, 'b d'], *, images: int) -> None:
    """Takes in features of the next `images` images, of which some may have none."""
    self.statistics.update(features)
    self.done += images
    if time.monotonic() - self._written >= _EVERY:
      self.write()

  def write(self) -> None:
    """Keeps what there is; a full disk, say, costs no more than that it is not kept."""
    self._written = time.monotonic()
    if self._path is None or not self.statistics.n:
      return
    made = self.statistics
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with replacing(self._path) as file:
        np.savez(file, about=np.array(self._about), done=self.done, n=made.n, mean=made.mean, scatter=made.scatter)
    except OSError:
      self._path = None

  def remove(self) -> None:
    """Deletes the file; call it when the result is on record."""
    if self._path is not None:
      with contextlib.suppress(OSError):  # then it is left, and never taken for another's
        self._path.unlink(missing_ok=True)

  def _read(self, path: pathlib.Path) -> None:
    try:
      kept = npz_file.read(path)
      if str(kept['about']) == self._about:
        n, self.done = int(kept['n']), int(kept['done'])
        self.statistics.n, self.statistics.mean, self.statistics.scatter = n, kept['mean'], kept['scatter']
    except (KeyError, TypeError, ValueError, OSError):
      return  # damaged: it is made again


def identity(params: Any) -> float:
  """A number that tells parameters from those of another step or run: their norm."""
  return float(jax.jit(optax.tree.norm)(params))


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
  """A digest of arrays by name, such as the conditions of samples."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(f'{name} {np.asarray(arrays[name]).tobytes().hex()}'.encode())
  return digest.hexdigest()
