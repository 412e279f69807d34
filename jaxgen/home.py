"""The folder that jaxgen keeps between runs: weights, prepared datasets, reference statistics, compiled programs."""

import os
import pathlib


def home() -> pathlib.Path:
  """$JAXGEN_HOME, else ~/.cache/jaxgen. It may not exist yet."""
  return pathlib.Path(os.environ.get('JAXGEN_HOME') or pathlib.Path.home() / '.cache' / 'jaxgen')
