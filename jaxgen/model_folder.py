"""A run's model as a small folder that opens like the run.

  config.json          the config that made the run
  model.safetensors    what it is sampled with, by path (`net/blocks/...`), in half precision; state of the objective,
                       such as running statistics, is under `extra/`
  data.json            notes of the data that the config reads when it is built, without pictures (data/described.py)

`jaxgen export RUN --out FOLDER --format jaxgen` writes one. `jaxgen sample --weights FOLDER`, `jaxgen.load_run` and
`--init-from` read it. Those that come with jaxgen are called jaxgen/NAME.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from jaxgen.data import described
from jaxgen.pretrained import hub, safetensors_file
from jaxgen.sharding import path_name
from jaxgen.train_state import TrainState

T = TypeVar('T')
FILE = 'model.safetensors'
SHIPPED = pathlib.Path(__file__).parent / 'pretrained' / 'shipped'
_NAME = re.compile(r'jaxgen/([\w.-]+)')
_FORMAT = 'jaxgen model'


def shipped() -> list[str]:
  """Names of the models that come with jaxgen."""
  return sorted(f'jaxgen/{path.name}' for path in SHIPPED.iterdir() if is_model(path))


def resolved(path: str | os.PathLike) -> str:
  """The folder that a path or a name stands for: jaxgen/NAME, or that of a published model that was fetched.

  Raises:
    ValueError: no model of that name comes with jaxgen.
    FileNotFoundError: a published model is not here.
  """
  text = os.fspath(path)
  named = _NAME.fullmatch(text)
  if named is None:
    return hub.resolved(text)
  if text not in shipped():
    there = ', '.join(shipped()) or 'none'
    raise ValueError(
      f'no model {text!r} comes with jaxgen; there are: {there}. For a folder of that name, give ./{text}'
    )
  return os.fspath(SHIPPED / named[1])


def is_model(folder: str | os.PathLike) -> bool:
  """Whether a folder is one of these."""
  file = epath.Path(folder) / FILE
  return file.exists() and safetensors_file.metadata(file).get('format') == _FORMAT


def built(build: Callable[[Any], T], config: Any, folder: str | os.PathLike) -> T:
  """What a config builds, to sample a run or a model; where a model's data are not here, from its notes of them.

  Args:
    build: the config module's.
    config: the config.
    folder: the folder of the run or of the model.
  """
  with described.replayed(folder) if is_model(folder) else contextlib.nullcontext():
    return build(config)


def step(folder: str | os.PathLike) -> int:
  """Number of train steps of a model."""
  return int(safetensors_file.metadata(epath.Path(folder) / FILE)['step'])


def transform_of(identity: Mapping[str, Any]) -> str:
  """What a loader's transform depends on, such as the hash of a vocabulary; see `Loader.identity`."""
  return str(identity.get('transform', ''))


def write(folder: str | os.PathLike, params: Mapping[str, Any], *, step: int, transform: str) -> None:
  """Writes model.safetensors.

  Args:
    folder: the folder.
    params: from `sampling_params`.
    step: train steps that they have had.
    transform: `transform_of` the loader.

  Raises:
    ValueError: a number is too large for half precision.
  """
  arrays = {path_name(path): _half(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(dict(params))}
  about = {'format': _FORMAT, 'step': str(step), 'transform': transform}
  safetensors_file.write(epath.Path(folder) / FILE, arrays, metadata=about)


def read(folder: str | os.PathLike) -> dict[str, Any]:
  """The trees of a model by the names of `state.params`, and 'extra' where it has that."""
  return traverse_util.unflatten_dict(safetensors_file.read(epath.Path(folder) / FILE), sep='/')


def restore(folder: str | os.PathLike, abstract: TrainState, *, transform: str) -> TrainState:
  """The state of a model; averages are its parameters, and the optimizers' states stay as they are.

  Args:
    folder: the folder.
    abstract: shapes and places of the state that its config builds.
    transform: as in `write`, of the same config.

  Raises:
    ValueError: the config builds another network or another vocabulary than the model was trained with.
  """
  about = safetensors_file.metadata(epath.Path(folder) / FILE)
  if about['transform'] != transform:
    raise ValueError(
      f'{folder} was trained with other captions or another vocabulary than its config has now, so its words would be '
      'taken for others; use the version of jaxgen, and the dataset, that it was trained with'
    )
  found = safetensors_file.read(epath.Path(folder) / FILE)
  wanted = abstract.params | ({'extra': abstract.extra} if abstract.extra else {})
  shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)}
  wrong = sorted(name for name in {*found, *shapes} if name not in found or found[name].shape != shapes.get(name))
  if wrong:
    raise ValueError(
      f'{folder} holds another network than its config builds: {len(wrong)} arrays differ, such as {wrong[0]}'
    )

  def place(path: Any, leaf: Any) -> jax.Array:
    array = found[path_name(path)].astype(leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

  made = jax.tree_util.tree_map_with_path(place, wanted)
  extra = made.pop('extra', {})
  return abstract.replace(step=np.int32(about['step']), params=made, ema={}, extra=extra)


def _half(path: Any, leaf: Any) -> np.ndarray:
  array = np.asarray(leaf)
  if not np.issubdtype(array.dtype, np.floating):
    return array
  with np.errstate(over='ignore'):
    half = array.astype(np.float16)
  if np.isfinite(half).all() or not np.isfinite(array).all():
    return half
  raise ValueError(f'{path_name(path)} has numbers up to {np.abs(array).max():.3g}, and half precision ends at 65,504')
