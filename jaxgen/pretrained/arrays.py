"""Files of plain arrays by name: the form in which weights of published pickles are saved where those are trusted."""

import os

import numpy as np

from jaxgen import npz_file
from jaxgen.pretrained import bucket, safetensors_file


def read(path: str | os.PathLike, *, prefix: str = '') -> dict[str, np.ndarray]:
  """The arrays of an npz or safetensors file whose names start with `prefix`, without it.

  Raises:
    ValueError: the file is neither, or none of its arrays has that prefix.
  """
  place = os.fspath(path)
  if place.endswith('.npz'):
    copy = bucket.here(path)  # held until its arrays are read
    arrays = npz_file.read(copy.path, wanted=lambda name: name.startswith(prefix))
  elif place.endswith('.safetensors'):
    arrays = {name: array for name, array in safetensors_file.read(path).items() if name.startswith(prefix)}
  else:
    raise ValueError(f'{path} is read as arrays from .npz or .safetensors; convert it where its code is trusted')
  if not arrays:
    raise ValueError(f'{path} has no array whose name starts with {prefix!r}')
  return {name.removeprefix(prefix): array for name, array in arrays.items()}
