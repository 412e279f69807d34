"""Keeps what sampling needs of an Experiment in the run's folder, for runs that were made without a config.

  experiment/STAGE.stablehlo       the sampler, a program of jax.export: (arrays, fields, keys) -> images
  experiment/STAGE.safetensors     frozen networks, and the conditions of the first images of the training data
  experiment/about.json            steps, names of classes, shapes of the state, averages

An Experiment is made of functions, which no file holds, so its sampler is kept as what it compiles to, on the kind of
device that trained. Such a run is sampled with any of its checkpoints, averages and labels. Editing, text, and other
samplers take the Experiment itself.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import traverse_util

from jaxgen import frozen as frozen_networks
from jaxgen import sample, sharding, stage_setup
from jaxgen.ema import Average, constant
from jaxgen.experiment import Experiment
from jaxgen.files import read_json_object, write_whole
from jaxgen.objectives.base import Objective
from jaxgen.objectives.conditioning import Conditioner, Field
from jaxgen.pretrained import safetensors_file
from jaxgen.train_state import sampling_params
from jaxgen.typing import Array, Cond, Float, Key

FOLDER = 'experiment'
GIVE = 'the Experiment that it was trained with to jaxgen.load_run(folder, experiment=...)'
_NUM = 16  # images of one call of the program
_PARTS = ('params', 'ema', 'extra')


class Data(NamedTuple):
  """Stands in for the loader: the names of the classes, and the conditions of some training images."""

  class_names: tuple[str, ...]
  conditions: Mapping[str, np.ndarray]

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in self.conditions.items()}

  @property
  def identity(self) -> dict[str, Any]:
    return {'batch_size': _NUM}

  @property
  def dataset(self) -> Any:
    raise ValueError(f'the training data of this run is not known; give reference=, or give {GIVE}')

  def rows(self, step: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
    return {name: values[np.asarray(rows) % len(values)] for name, values in self.conditions.items()}


def is_kept(folder: str | os.PathLike) -> bool:
  """Whether a run's folder has what `load` reads."""
  return (epath.Path(folder) / FOLDER / 'about.json').exists()


def programs(folder: str | os.PathLike) -> list[pathlib.Path]:
  """The files of a run's folder that `load` has run."""
  return sorted(pathlib.Path(folder, FOLDER).glob('*.stablehlo'))


def save(folder: str | os.PathLike, stages: Sequence[Experiment]) -> None:
  """Writes the folder; one process calls it."""
  place = epath.Path(folder) / FOLDER
  place.mkdir(parents=True, exist_ok=True)
  about = [_save_stage(place, str(number), stage) for number, stage in enumerate(stages)]
  write_whole(place / 'about.json', json.dumps({'stages': about}) + '\n')  # last of all: a folder that has it is whole


def load(folder: str | os.PathLike) -> tuple[Experiment, ...]:
  """Stages that can be sampled; `sample.restore` reads their parameters."""
  place = epath.Path(folder) / FOLDER
  about = read_json_object(place / 'about.json')
  if not about or not isinstance(about.get('stages'), list):
    raise ValueError(f'{place}/about.json is damaged; give {GIVE}')
  return tuple(_load_stage(place, str(number), kept) for number, kept in enumerate(about['stages']))


def _save_stage(place: epath.Path, name: str, stage: Experiment) -> dict[str, Any]:
  abstract = stage_setup.abstract_state(stage)
  cond = sample.conditioning(stage, _NUM)
  objective = stage.objective
  tree = {'params': sampling_params(abstract), 'frozen': frozen_networks.shapes(stage.frozen)}
  like, structure = _flat(tree), jax.tree.structure(tree)

  def run(arrays: Mapping[str, Array], fields: Cond, keys: Array) -> Float[Array, 'b h w c']:
    made = jax.tree.unflatten(structure, [arrays[at] for at in like])
    return objective.sample(made['params'], made['frozen'], fields, jax.random.wrap_key_data(keys))

  keys = jax.random.key_data(jax.random.split(jax.random.key(0), _NUM))
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (like, cond, keys))
  write_whole(place / f'{name}.stablehlo', bytes(jax.export.export(jax.jit(run))(*shapes).serialize()))
  arrays = {}
  for network, it in ((key, frozen_networks.frozen(tree)) for key, tree in stage.frozen.items()):
    placed = jax.tree.map(lambda like, leaf: np.asarray(leaf, like.dtype), it.placed_shapes, it.load())
    arrays |= {f'frozen/{network}/{at}': leaf for at, leaf in _flat(placed).items()}
  arrays |= {f'cond/{at}': rows for at, rows in cond.items()}
  safetensors_file.write(place / f'{name}.safetensors', arrays, metadata={'format': 'jaxgen'})
  state = {part: _flat(getattr(abstract, part)) for part in _PARTS}
  return {
    'steps': stage.steps,
    'class_names': list(stage.data.class_names),
    'averages': {key: average.of for key, average in stage.averages.items()},
    'state': {
      part: {at: [list(leaf.shape), str(leaf.dtype)] for at, leaf in leaves.items()} for part, leaves in state.items()
    },
  }


def _load_stage(place: epath.Path, name: str, about: Mapping[str, Any]) -> Experiment:
  program = jax.export.deserialize(bytearray((place / f'{name}.stablehlo').read_bytes()))
  arrays = safetensors_file.read(place / f'{name}.safetensors')
  trees: dict[str, Any] = traverse_util.unflatten_dict(arrays, sep='/')
  conditions = trees.get('cond', {})
  shapes = {part: {at: (tuple(s), d) for at, (s, d) in leaves.items()} for part, leaves in about['state'].items()}

  def init(key: Any, frozen: Any, batch: Any) -> dict[str, Any]:
    made = {part: {at: jnp.zeros(*leaf) for at, leaf in leaves.items()} for part, leaves in shapes.items()}
    return {part: traverse_util.unflatten_dict(made[part], sep='/') for part in ('params', 'extra')}

  return Experiment(
    objective=Objective(init, (), _sampler(program), conditioner=Conditioner({at: Field() for at in conditions})),
    optimizers={at.partition('/')[0]: optax.identity() for at in shapes['params']},
    averages={key: Average(of, constant(0.0)) for key, of in about['averages'].items()},
    data=Data(tuple(about['class_names']), conditions),
    steps=about['steps'],
    mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    frozen=trees.get('frozen', {}),
  )


def _sampler(program: jax.export.Exported) -> Any:
  """`Objective.sample` by a program of _NUM images, for any number of them."""

  def run(params: Any, frozen: Any, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    arrays, data = _flat({'params': params, 'frozen': frozen}), jax.random.key_data(keys)
    images = []
    for begin in range(0, len(keys), _NUM):
      rows = np.minimum(np.arange(begin, begin + _NUM), len(keys) - 1)
      cond_rows = {name: jnp.asarray(values)[rows] for name, values in cond.items()}
      images.append(program.call(arrays, cond_rows, data[rows]))
    return jnp.concatenate(images)[: len(keys)]

  return run


def _flat(tree: Any) -> dict[str, Any]:
  return {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
