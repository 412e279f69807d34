"""Statistics of reference images: computed once and kept, or read from a file of somebody else's.

They are kept under ~/.cache/jaxgen/statistics (JAXGEN_HOME) by a hash of everything they depend on, which is also
written in the file. The file is an .npz with `mu` and `sigma`, as TTUR and pytorch-fid write it, and the count `n`.
"""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from jaxgen.home import home
from jaxgen.metrics.features import Extract
from jaxgen.metrics.statistics import FeatureStatistics, Moments
from jaxgen.typing import Array


def moments_of(batches: Iterable[Array | np.ndarray], extract: Extract) -> Moments:
  """Statistics of the features of batches of images in [-1, 1]."""
  statistics = FeatureStatistics()
  for batch in batches:
    statistics.update(extract(batch))
  return statistics.finalize()


def cached(key: Mapping[str, str], compute: Callable[[], Moments], *, write: bool = True) -> Moments:
  """The statistics of `key`, computed when they are asked for the first time.

  Args:
    key: all they depend on: the dataset's fingerprint, split, preprocessing, resize, hash of the weights.
    write: whether to keep them; one process of several should.
  """
  path = cached_path(key)
  if path.exists():
    return read(path)
  moments = compute()
  if write:
    _write(path, moments, key)
  return moments


def cached_path(key: Mapping[str, str]) -> Path:
  digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
  return home() / 'statistics' / f'{digest[:32]}.npz'


def read(path: Path) -> Moments:
  """Statistics from an .npz with `mu` and `sigma`, and `n` where the file says it.

  Raises:
    ValueError: the file is damaged, or does not hold them.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      n = (int(file['n']) or None) if 'n' in file else None
      mean, cov = np.asarray(file['mu'], np.float64), np.asarray(file['sigma'], np.float64)
  except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path} holds no statistics (an .npz with mu and sigma): {error}') from error
  if mean.ndim != 1 or cov.shape != (mean.size, mean.size):
    raise ValueError(f'{path}: mu {mean.shape} and sigma {cov.shape} do not fit each other')
  return Moments(n, mean, cov)


def _write(path: Path, moments: Moments, key: Mapping[str, str]) -> None:
  """The file is complete or not there, whenever the process is killed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, suffix='.npz')
  try:
    with os.fdopen(handle, 'wb') as file:
      np.savez(
        file, n=np.int64(moments.n or 0), mu=moments.mean, sigma=moments.cov, key=json.dumps(dict(key), sort_keys=True)
      )
    os.replace(temporary, path)
  finally:
    Path(temporary).unlink(missing_ok=True)
