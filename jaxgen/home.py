"""The folder that jaxgen keeps between runs: weights, prepared datasets, reference statistics, compiled programs."""

import os
import pathlib


def home() -> pathlib.Path:
  """$JAXGEN_HOME, else ~/.cache/jaxgen. It may not exist yet.

  Raises:
    ValueError: $JAXGEN_HOME is not on this machine.
  """
  value = os.environ.get('JAXGEN_HOME') or str(pathlib.Path.home() / '.cache' / 'jaxgen')
  if '://' in value:
    raise ValueError(
      f'JAXGEN_HOME is {value}; it must be a folder of this machine. In a bucket may be a run (--workdir), a data_dir '
      'of TFDS, and compiled programs (JAX_COMPILATION_CACHE_DIR)'
    )
  return pathlib.Path(value).expanduser()
