"""Images from a run's folder: restores what it trained, and samples it as its config says.

Image i depends on the weights, its conditioning and fold_in(key(seed), i) alone, so asking for more images, or in
other batches, gives the same ones.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxgen import best, ema, model_folder, sharding, stage_setup
from jaxgen.checkpoint import Checkpoints
from jaxgen.evaluators.generate import make_generate, to_host
from jaxgen.experiment import Experiment, as_stages, stage_of
from jaxgen.generation import negative
from jaxgen.objectives.base import Denoising, GenerationFn
from jaxgen.train_state import TrainState, sampling_params
from jaxgen.typing import UInt8

Cond = dict[str, np.ndarray]
Step = int | Literal['best']


class Trained(NamedTuple):
  """A restored run: the stage it was in, and a state whose averages are what to sample with."""

  stage: Experiment
  state: TrainState
  frozen: dict[str, Any]

  @property
  def params(self) -> dict[str, Any]:
    """What `Objective.sample` takes."""
    return sampling_params(self.state)

  @property
  def step(self) -> int:
    return int(self.state.step)


def restore(
  experiment: Experiment | Sequence[Experiment],
  workdir: str | os.PathLike,
  *,
  step: Step | None = None,
  average: str | None = None,
) -> Trained:
  """Reads the weights that a run is sampled with, and no optimizer state.

  Args:
    experiment: the Experiment that the run's config builds.
    workdir: the run's folder, or that of a model (model_folder.py).
    step: step of the checkpoint, or 'best' for the model with the lowest FID (best.py); the newest by default.
    average: sample with this average of `state.ema`; 'none' is the parameters themselves, and 'power:0.08' the power
      function's average of that relative standard deviation, reconstructed from those that the checkpoints hold
      (ema.py). By default each network with an average of its own name is sampled with that.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ValueError: there is no such average, or none to reconstruct it from.
    CheckpointError: it is damaged, or of another network.
  """
  stages = as_stages(experiment)
  if model_folder.is_model(workdir):
    return _model(stages, workdir, step=step, average=average)
  folder, step = (best.FOLDER, None) if step == 'best' else ('checkpoints', step)
  if folder == best.FOLDER and not (epath.Path(workdir) / folder).exists():
    raise FileNotFoundError(f'{workdir} keeps no best model, since it has measured no FID; leave --step best out')
  checkpoints = Checkpoints(epath.Path(workdir) / folder, None)
  try:
    step = checkpoints.latest() if step is None else step
    stage = stages[stage_of(stages, step or 0)]
    profile = _profile(average)
    if profile is None and average not in (None, 'none', *stage.averages):
      raise ValueError(f'no average named {average!r}; this run keeps {sorted(stage.averages)}, none and power:WIDTH')
    abstract = stage_setup.abstract_state(stage)
    state = checkpoints.restore_model(abstract, step)
    if profile is not None:
      state = state.replace(ema=_reconstructed(stage, checkpoints, abstract, int(state.step), profile))
    elif average is not None:
      kept = stage.averages.get(average)
      state = state.replace(ema={} if kept is None else {kept.of: state.ema[average]})
  finally:
    checkpoints.close()
  return Trained(stage, state, stage_setup.place_frozen(stage))


def _model(
  stages: Sequence[Experiment], workdir: str | os.PathLike, *, step: Step | None, average: str | None
) -> Trained:
  if step is not None or average is not None:
    given = f'step {step}' if step is not None else f'average {average!r}'
    raise ValueError(f'{workdir} holds one set of weights, so no {given} can be chosen')
  stage = stages[stage_of(stages, model_folder.step(workdir))]
  abstract = stage_setup.abstract_state(stage)
  state = model_folder.restore(workdir, abstract, transform=model_folder.transform_of(stage.data.identity))
  return Trained(stage, state, stage_setup.place_frozen(stage))


def _profile(average: str | None) -> float | None:
  """The width in 'power:WIDTH'; None for other averages."""
  kind, _, width = (average or '').partition(':')
  if kind != 'power':
    return None
  try:
    return float(width)
  except ValueError:
    raise ValueError(f'average {average!r} is not understood; wanted power:WIDTH, such as power:0.08') from None


def _reconstructed(stage: Experiment, checkpoints: Checkpoints, abstract, step: int, width: float) -> dict[str, Any]:
  """Each network's average of relative standard deviation `width` at `step`, where it keeps any of that family."""
  steps = [kept for kept in checkpoints.steps() if kept <= step]
  snapshots: dict[str, list[ema.Snapshot]] = {}
  for name, average in stage.averages.items():
    if isinstance(average.decay, ema.Power):
      for kept in steps:
        load = functools.partial(lambda kept, name: checkpoints.restore_model(abstract, kept).ema[name], kept, name)
        snapshots.setdefault(average.of, []).append(ema.Snapshot(kept, average.decay.exponent, load))
  if not snapshots:
    raise ValueError(
      'no average of this run is of the power family; add ema.Average(of, ema.power(0.05)) to its config'
    )
  return {of: ema.reconstruct(kept, step, ema.exponent_of(width)) for of, kept in snapshots.items()}


def of_config(build: Callable[[Any], Any], config: Any, workdir: str | os.PathLike, **how: Any) -> Trained:
  """`restore` with what a config builds; a model opens where its data are not, too.

  Args:
    build: the config module's.
    config: the config.
    workdir: the folder of the run or of the model.
    how: `step` and `average` of `restore`.
  """
  return restore(model_folder.built(build, config, workdir), workdir, **how)


def conditioning(stage: Experiment, num: int, *, given: Mapping[str, Any] | None = None) -> Cond:
  """The condition of `num` images, as host arrays.

  Args:
    stage: a stage of a run; its conditioner says what can be given.
    num: images.
    given: values by field, such as {'label': [0, 3]}, which the images take in turn; other fields are those of the
      training data's first records.

  Raises:
    ValueError: the model has no such condition.
  """
  fields, given = stage.objective.conditioner.fields, given or {}
  for name in given:
    if name not in fields:
      raise ValueError(f'this model has no condition {name!r}; it has {", ".join(map(repr, fields)) or "none"}')
  rows = stage.data.rows(0, range(num)) if set(fields) - set(given) else {}
  taken = {name: np.asarray(values)[np.arange(num) % len(values)] for name, values in given.items()}
  return {name: taken[name] if name in taken else rows[name] for name in fields}


def class_numbers(labels: Sequence[str | int], names: Sequence[str]) -> list[int]:
  """Numbers of classes that are given by name or number; 'all' is each of them.

  Raises:
    ValueError: a label is no class.
  """
  if not names:
    raise ValueError(f'label {next(iter(labels))!r} is asked for, and this run has no classes; leave the label out')
  if 'all' in labels:
    return list(range(len(names)))
  numbers = []
  for label in labels:
    text = str(label)
    if text in names:
      numbers.append(list(names).index(text))
    elif text.isdecimal() and int(text) < len(names):
      numbers.append(int(text))
    else:
      known = ', '.join(f'{i} {name!r}' for i, name in enumerate(names[:50]))
      raise ValueError(f'label {label!r} is no class of this run; its classes are {known}')
  return numbers


def prompt_fields(stage: Experiment, prompts: Sequence[str]) -> dict[str, np.ndarray]:
  """The fields of a batch that prompts stand for.

  Raises:
    ValueError: the model reads no text.
  """
  if not prompts:
    return {}
  if stage.tokenize is None:
    fields = ', '.join(map(repr, stage.objective.conditioner.fields)) or 'nothing'
    raise ValueError(f'this model reads no text, so it takes no prompt; its conditions are {fields}')
  return dict(stage.tokenize(prompts))


def denoising(trained: Trained) -> Denoising:
  """`parts_of` the stage that a run was in."""
  return parts_of(trained.stage)


def parts_of(stage: Experiment) -> Denoising:
  """The parts of the objective's sampling, for generation/.

  Raises:
    ValueError: it has none.
  """
  parts = stage.objective.denoising
  if parts is None:
    raise ValueError(
      'this run does not sample by denoising, so its images cannot be edited, inpainted, interpolated, inverted, '
      'watched or stopped early; they are sampled from noise alone'
    )
  return parts


def away_from_prompt(stage: Experiment, text: str) -> Denoising:
  """`parts_of` a stage, with guidance away from a text."""
  conditioner = stage.objective.conditioner
  rows = prompt_fields(stage, [text])  # some beside the text, whose nulls stay: SDXL's refiner has a score
  null = {name: row[0] for name, row in rows.items() if name in conditioner.nullable and name.startswith('text')}
  return negative.away_from(parts_of(stage), conditioner, null)


def image_shape(trained: Trained) -> tuple[int, int, int]:
  """Height, width and channels of a sample."""
  stage = trained.stage
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  fields = sorted(stage.objective.conditioner.fields)
  cond = stage.tokenize(['']) if stage.tokenize is not None else {}
  if set(fields) - set(cond):
    cond = {**{name: rows[:1] for name, rows in conditioning(stage, 1).items()}, **cond}
  shapes = {name: jax.ShapeDtypeStruct(np.shape(cond[name]), np.asarray(cond[name]).dtype) for name in fields}
  made = jax.eval_shape(stage.objective.sample, trained.params, trained.frozen, shapes, keys)
  return made.shape[1:]


def noise_key(seed: int) -> Any:
  """The key of the first image of `sample(..., seed=seed)`."""
  return jax.random.fold_in(jax.random.key(seed), 0)


def batch_for(num: int, mesh: jax.sharding.Mesh) -> int:
  """How many of `num` images are made at a time, unless another number is given."""
  return -(-min(num, 64) // mesh.size) * mesh.size


def sample(
  trained: Trained,
  cond: Mapping[str, np.ndarray],
  *,
  num: int,
  seed: int = 0,
  batch_size: int | None = None,
  sample_fn: GenerationFn | None = None,
  inputs: Mapping[str, np.ndarray] | None = None,
  first: int = 0,
) -> UInt8[np.ndarray, 'n h w c']:
  """Makes `num` images, on every process.

  Args:
    trained: the parameters that `restore` returns.
    cond: host arrays of `num` rows each; see `conditioning`.
    num: images.
    seed: seed of their noise.
    batch_size: images at a time; by default 64, or what the mesh asks for.
    sample_fn: one of generation/ in place of the objective's `sample`.
    inputs: other inputs of `sample_fn` than the condition, as host arrays of `num` rows each: an image, a mask.
    first: images before this one are left out.
  """
  mesh = trained.stage.mesh
  batch_size = batch_for(num, mesh) if batch_size is None else batch_size
  sharding.check_batch_size(batch_size, mesh)
  generate = make_generate(sample_fn or trained.stage.objective.sample, mesh=mesh, batch_size=batch_size)
  batches = generate(trained.params, trained.frozen, cond, seed=seed, num=num, inputs=inputs or {}, first=first)
  return np.concatenate([to_host(images, mesh)[:count] for images, count in batches])
