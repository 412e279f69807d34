"""Statistics of reference images: computed once and kept, or read from a published file.

They are kept under ~/.cache/jaxgen/statistics (JAXGEN_HOME) by a hash of everything they depend on, which is also
written in the file. The file is an .npz with `mu` and `sigma`, as TTUR and pytorch-fid write it, and the count `n`.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxgen import npz_file
from jaxgen.files import replacing
from jaxgen.home import fetched, home, kept
from jaxgen.metrics.statistics import Moments


def cached_path(key: Mapping[str, str]) -> Path:
  """Where the statistics of `key` are kept, there or not.

  Args:
    key: all they depend on: the dataset's fingerprint, split, preprocessing, resize, hash of the weights.
  """
  digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
  return fetched(home() / 'statistics' / f'{digest[:32]}.npz')


def read(path: Path) -> Moments:
  """Statistics from an .npz with `mu` and `sigma`, and `n` where the file says it.

  Raises:
    ValueError: the file is damaged, or does not hold them.
  """
  try:
    file = npz_file.read(path, wanted=lambda name: name in ('n', 'mu', 'sigma'))
    n = (int(file['n']) or None) if 'n' in file else None
    mean, cov = np.asarray(file['mu'], np.float64), np.asarray(file['sigma'], np.float64)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{path} holds no statistics (an .npz with mu and sigma): {error}') from error
  if mean.ndim != 1 or cov.shape != (mean.size, mean.size):
    raise ValueError(f'{path}: mu {mean.shape} and sigma {cov.shape} do not fit each other')
  return Moments(n, mean, cov)


def read_all(path: Path) -> dict[str, Moments]:
  """Statistics by the name of the features: `pool` of mu and sigma, and `spatial` of ADM's mu_s and sigma_s.

  Raises:
    ValueError: the file is damaged, or does not hold them.
  """
  found = {'pool': read(path)}
  with np.load(path, allow_pickle=False) as file:
    if {'mu_s', 'sigma_s'} <= set(file.files):
      found['spatial'] = Moments(
        found['pool'].n, np.asarray(file['mu_s'], np.float64), np.asarray(file['sigma_s'], np.float64)
      )
  return found


def has_statistics(path: Path) -> bool:
  """Whether a file is an .npz with mu and sigma; there may be images beside them, as in ADM's."""
  try:
    with zipfile.ZipFile(path) as file:
      return {'mu.npy', 'sigma.npy'} <= set(file.namelist())
  except (OSError, zipfile.BadZipFile):
    return False


def write(path: Path, moments: Moments, key: Mapping[str, str]) -> None:
  """Keeps statistics for `read`; the file is complete or absent, whenever the process is killed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as file:
    np.savez(
      file, n=np.int64(moments.n or 0), mu=moments.mean, sigma=moments.cov, key=json.dumps(dict(key), sort_keys=True)
    )
  kept(path)
