"""jaxgen as a library: sampling, evaluating and training from Python, and the parameters of a run.

  run = load_run('runs/emoji_dit')         run.sample(16), run.edit(images), run.evaluate(['fid']), run.params
  run = train('emoji_dit', 'runs/mine')    as `jaxgen train`, and returns the run
  evaluate('samples', 'photos')            as `jaxgen evaluate`
  load('DiT-XL-2-256/transformer')         published weights

The whole is made of pieces that a program of one's own may take singly: `sample.restore`, `train.train`,
`evaluate.measure`, `pretrained.published`. On several hosts, `jax.distributed.initialize()` comes first, as in any
program of JAX.
"""

import copy
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from numpy.typing import ArrayLike
from PIL import Image

from jaxgen import (
  distributed,
  files,
  image_grid,
  kept_experiment,
  metrics_file,
  model_folder,
  sample,
  stage_setup,
  xla_flags,
)
from jaxgen.cli import config as configs
from jaxgen.cli import trust
from jaxgen.cli.edit import image_shape, read_images
from jaxgen.data.image import to_float
from jaxgen.destination import Destination
from jaxgen.evaluate import Samples, compare, measure
from jaxgen.experiment import Experiment, as_stages, stage_of
from jaxgen.generation.edit import edited
from jaxgen.generation.inpaint import inpainted
from jaxgen.generation.interpolate import interpolated
from jaxgen.metrics.folder import array_images
from jaxgen.objectives.base import Denoising, GenerationFn, sampled
from jaxgen.pretrained import published
from jaxgen.train import train as train_stages
from jaxgen.typing import UInt8

Path = str | os.PathLike
Pictures = Path | ArrayLike  # a file or folder of images, or an array: uint8, or float in [-1, 1]; n h w c or h w c
Labels = str | int | Sequence[str | int]

load = published.load


@dataclasses.dataclass(frozen=True, repr=False)
class LoadedRun:
  """A trained model with everything needed to sample it.

  Attributes:
    folder: the run's folder.
    trained: the stage that the run is in, its state and its frozen networks, for programs of one's own.
    config: the resolved config; None for a run that was not made from one.
    average: the average that is sampled with, where it is not each network's own.
  """

  folder: epath.Path
  trained: sample.Trained
  config: Any = None
  average: str | None = None
  _module: Any = None

  def __repr__(self) -> str:
    """One line, as a notebook shows a cell's value; its arrays would be thousands."""
    networks = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in self.params.items()}
    sizes = ', '.join(f'{name} of {size:,} parameters' for name, size in networks.items())
    return f'<{type(self).__name__} {os.fspath(self.folder)}, step {self.step:,}: {sizes}>'

  @property
  def step(self) -> int:
    """Number of train steps of the weights."""
    return self.trained.step

  @property
  def params(self) -> dict[str, Any]:
    """The averaged parameters by network, as `objective.sample` takes them."""
    return self.trained.params

  @property
  def class_names(self) -> tuple[str, ...]:
    return tuple(self.trained.stage.data.class_names)

  @property
  def metrics(self) -> list[dict[str, Any]]:
    """The records of metrics.jsonl: the metrics of the run."""
    return metrics_file.read_metrics(self.folder / 'metrics.jsonl')

  def sample(
    self,
    num: int = 16,
    *,
    labels: Labels | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
  ) -> UInt8[np.ndarray, 'n h w c']:
    """Images, with the sampler and guidance of the config.

    Args:
      num: number of images.
      labels: classes by name or number, which the images take in turn; 'all' is each class. By default those of the
        training data's first records.
      prompt: a text, or several that the images take in turn, for models of text.
      negative: a text that guidance leads away from.
      seed: seed of the noise: image i is the same however many are made.
      batch_size: images at a time.
    """
    cond = self.conditions(num, labels=labels, prompt=prompt)
    run = None if negative is None else sampled(sample.away_from_prompt(self.trained.stage, negative))
    return self._sample(cond, num, seed, batch_size, run)

  def edit(
    self, images: Pictures, num: int | None = None, *, strength: float = 0.6, seed: int = 0, **cond: Any
  ) -> UInt8[np.ndarray, 'n h w c']:
    """Images with noise of time `strength` in (0, 1], sampled again (SDEdit); `cond` is `labels` or `prompt`."""
    pictures = self._pictures(images, num)
    run = edited(self._parts, strength=strength)
    return self._sample(self.conditions(len(pictures), **cond), len(pictures), seed, None, run, image=pictures)

  def inpaint(
    self, images: Pictures, masks: Pictures, num: int | None = None, *, repeats: int = 10, seed: int = 0, **cond: Any
  ) -> UInt8[np.ndarray, 'n h w c']:
    """Images with what is white in the masks sampled again (RePaint); `cond` is `labels` or `prompt`."""
    pictures = self._pictures(images, num)
    white = (self._pictures(masks, len(pictures), channels=1) + 1) / 2
    run = inpainted(self._parts, repeats=repeats)
    inputs = {'image': pictures, 'mask': white}
    return self._sample(self.conditions(len(pictures), **cond), len(pictures), seed, None, run, **inputs)

  def interpolate(self, seed: int, other: int, num: int = 8, **cond: Any) -> UInt8[np.ndarray, 'n h w c']:
    """Images from the first one of a seed to that of another, of one condition."""
    rows = {name: np.repeat(row, num, axis=0) for name, row in self.conditions(1, **cond).items()}
    run = interpolated(self._parts, sample.noise_key(seed), sample.noise_key(other))
    return self._sample(rows, num, 0, None, run, weight=np.linspace(0, 1, num, dtype=np.float32))

  def evaluate(
    self,
    metrics: Sequence[str] = ('fid',),
    *,
    num: int = 50_000,
    reference: Path | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    folder: Path | None = None,
  ) -> dict[str, Any]:
    """Any metrics of `num` samples, and their `protocol`; a killed call continues.

    Args:
      metrics: names of `jaxgen.metrics.suite.METRICS`.
      num: samples; 50,000 for numbers that compare with the literature.
      reference: a folder of images, a .zip or an .npz; the training data by default.
      seed: seed of the noise.
      batch_size: images at a time.
      folder: where features and result.json are kept; RUN/evaluation/samples by default.
    """
    stage = self.trained.stage
    size = sample.batch_for(num, stage.mesh) if batch_size is None else batch_size
    config = {} if self.config is None else self.config.to_dict()
    about = {
      'run': str(pathlib.Path(self.folder).resolve()),
      'step': self.step,
      'average': self.average or 'own',
      'config': json.loads(json.dumps(config, default=repr)),
    }
    result = measure(
      self.trained,
      pathlib.Path(folder or self.folder / 'evaluation' / 'samples'),
      Samples(num, seed, size, self.conditions(num)),
      metrics=metrics,
      about=about,
      reference=None if reference is None else pathlib.Path(reference),
    )
    return {} if result is None else result.values

  def changed(self, fields: Mapping[str, Any]) -> 'LoadedRun':
    """The same weights under other fields of the config: `run.changed({'sampling.steps': 50, 'sampling.scale': 2.0})`.

    Raises:
      ValueError: the run has no config, or such a field, or the fields change the network.
    """
    if self._module is None:
      raise ValueError(f'{self.folder} was not made from a config; build its Experiment anew and give it to load_run')
    config = copy.deepcopy(self.config)
    configs.change(config, fields, name=self._module.__name__.rpartition('.')[2])
    stages = as_stages(model_folder.built(self._module.build, config, self.folder))
    stage = stages[stage_of(stages, self.step)]
    shapes = [
      jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
      for params in (stage_setup.abstract_state(stage).params, self.trained.state.params)
    ]
    if shapes[0] != shapes[1]:
      raise ValueError(f'{dict(fields)} changes the networks, whose parameters are trained; train another run')
    return dataclasses.replace(self, config=config, trained=self.trained._replace(stage=stage))

  def conditions(
    self, num: int, *, labels: Labels | None = None, prompt: str | Sequence[str] | None = None
  ) -> dict[str, np.ndarray]:
    """The conditions of `num` images, as arrays by field."""
    given: dict[str, Any] = {}
    if labels is not None:
      each = [labels] if isinstance(labels, str | int) else list(labels)
      given['label'] = np.asarray(sample.class_numbers(each, self.class_names), np.int32)
    if prompt is not None:
      given |= sample.prompt_fields(self.trained.stage, [prompt] if isinstance(prompt, str) else list(prompt))
    if num < 1:
      raise ValueError(f'num is {num}; it must be 1 or more')
    return sample.conditioning(self.trained.stage, num, given=given)

  @property
  def _parts(self) -> Denoising:
    if isinstance(self.trained.stage.data, kept_experiment.Data):
      raise ValueError(f'this run was made from no config, so it can be sampled alone; give {kept_experiment.GIVE}')
    return sample.denoising(self.trained)

  def _pictures(self, images: Pictures, num: int | None, *, channels: int | None = None) -> np.ndarray:
    """Float images in [-1, 1] of the size that the model makes."""
    height, width, own = image_shape(self._parts, self.trained.frozen)
    shape = (height, width, channels or own)
    if isinstance(images, str | os.PathLike):
      return read_images(pathlib.Path(images), shape, num)
    array = np.asarray(images)
    array = array[None] if array.ndim == 3 else array
    array = to_float(array) if array.dtype == np.uint8 else array.astype(np.float32)
    if array.shape[1:] != shape:
      raise ValueError(f'images are {list(array.shape)}; this run takes [n, {height}, {width}, {shape[-1]}]')
    return array if num is None else array[np.arange(num) % len(array)]

  def _sample(
    self,
    cond: dict[str, np.ndarray],
    num: int,
    seed: int,
    batch_size: int | None,
    run: GenerationFn | None,
    **inputs: Any,
  ) -> UInt8[np.ndarray, 'n h w c']:
    return sample.sample(self.trained, cond, num=num, seed=seed, batch_size=batch_size, sample_fn=run, inputs=inputs)


def load_run(
  folder: Path,
  fields: Mapping[str, Any] = {},
  *,
  step: sample.Step | None = None,
  average: str | None = None,
  experiment: Experiment | Sequence[Experiment] | None = None,
  config: Path | None = None,
  trust_code: bool = False,
) -> LoadedRun:
  """The model of a run's folder.

  Args:
    folder: the run's folder, which may be in a bucket; or a model, such as 'jaxgen/avatars' (model_folder.py).
    fields: fields of its config to change, such as {'sampling.steps': 50}.
    step: step of the checkpoint, or 'best' for the model with the lowest FID; the newest by default.
    average: see `sample.restore`.
    experiment: the experiment, for a run that was not made from a config; without it such a run can be sampled, and
      nothing else (kept_experiment.py).
    config: path or bare name of the config to use in place of the one that the folder names; its code runs.
    trust_code: also run code of the folder that you have not trained with (docs/trust.md).

  Raises:
    FileNotFoundError: there is no such run or checkpoint.
    ValueError: its config is not known, has no such field, or may not run.
    CheckpointError: the checkpoint is damaged.
  """
  made, module = None, None
  folder = model_folder.resolved(folder)
  if experiment is None and config is None and _is_kept(folder):
    if fields:
      raise ValueError(f'{folder} was made from no config, so it has no fields; give {kept_experiment.GIVE}')
    code = _programs(folder)
    if not (trust_code or trust.is_known(code)):
      raise ValueError(
        f'{folder} holds a program, {code.path}, that you have not trained with here; give trust_code=True to run it'
      )
    experiment = kept_experiment.load(folder)
  elif experiment is None:
    made, module = configs.load_run(folder, fields, config=config, trust_code=trust_code)
    experiment = model_folder.built(module.build, made, folder)
  elif fields:
    raise ValueError('fields are those of a config; change the experiment itself')
  trained = sample.restore(experiment, folder, step=step, average=average)
  return LoadedRun(epath.Path(folder), trained, made, average, module)


def train(
  experiment: Path | Experiment | Sequence[Experiment],
  folder: Path | None = None,
  fields: Mapping[str, Any] = {},
  *,
  allow_changes: bool = False,
  writers: Sequence[Destination] = (),
) -> LoadedRun:
  """Trains until the last step, from the newest checkpoint in the folder if there is one; returns the run.

  Args:
    experiment: name or path of a config, or what its `build` returns.
    folder: the run's folder; runs/NAME by default for a config.
    fields: fields of the config to change, such as {'steps': 100, 'model.depth': 4}.
    allow_changes: go on although dataset, seed, batch size or config are not those of the checkpoint.
    writers: other places that metrics and pictures go to, such as `jaxgen.destination.wandb('project')`.

  Raises:
    ValueError: it cannot run as configured, or the folder holds another run.
    RunError: too many steps in a row were not finite, or the disk is full.
    Preempted: SIGTERM came; the state is saved.
  """
  xla_flags.keep_freed_memory()
  made, module, about = None, None, {}
  if isinstance(experiment, str | os.PathLike):
    made, module = configs.load_config(experiment, fields)
    configs.remember(module)
    about = configs.record(made, module)
    folder = folder or pathlib.Path('runs') / about['name']
    experiment = module.build(made)
  elif folder is None or fields:
    raise ValueError('an Experiment needs the folder of its run, and has no fields of a config')
  folder = epath.Path(folder).expanduser()
  stages, fresh = as_stages(experiment), not folder.exists()
  if module is None and fresh:
    _keep(folder, stages)  # before the first step, so that a run that is killed can be sampled
  state = train_stages(stages, folder, record=about, allow_changes=allow_changes, writers=writers)
  if module is None and not fresh:
    _keep(folder, stages)
  trained = sample.Trained(stages[-1], state, stage_setup.place_frozen(stages[-1]))
  return LoadedRun(folder, trained, made, None, module)


def _is_kept(folder: Path) -> bool:
  named = files.read_json_object(epath.Path(folder) / 'config.json') or {}
  return 'name' not in named and kept_experiment.is_kept(folder)


def _keep(folder: Path, stages: Sequence[Experiment]) -> None:
  """Keeps what sampling takes in the run's folder, and puts it on record as this user's own."""
  if distributed.is_first():
    kept_experiment.save(folder, stages)
    trust.remember(_programs(folder))


def _programs(folder: Path) -> trust.Code:
  sources = {path.name: trust.Source(path, path.read_bytes()) for path in kept_experiment.programs(folder)}
  return trust.Code(next(iter(sources)), sources)


def evaluate(
  images: Pictures,
  reference: Pictures | None = None,
  *,
  metrics: Sequence[str] = ('fid',),
  batch_size: int | None = None,
) -> dict[str, Any]:
  """Any metrics of images against others, and their `protocol`.

  Args:
    images: a folder, a .zip of one, an .npz of samples, or uint8 [n, height, width, channels].
    reference: real images likewise, or an .npz of their statistics; none for metrics that need none.
    metrics: names of `jaxgen.metrics.suite.METRICS`.
    batch_size: images at a time; 16 for each device by default.

  Raises:
    FileNotFoundError, ValueError: images, weights or statistics that are missing, damaged or too few.
  """
  given, compared = (None if each is None else _opened(each) for each in (images, reference))
  assert given is not None
  return compare(given, compared, metrics=metrics, batch_size=batch_size)


def _opened(images: Pictures) -> Any:
  if isinstance(images, str | os.PathLike):
    return pathlib.Path(images)
  array = np.asarray(images)
  if array.dtype != np.uint8 or array.ndim != 4:
    raise ValueError(f'images are {array.dtype} {list(array.shape)}; wanted uint8 [n, height, width, channels]')
  return array_images(array)


def grid(images: UInt8[np.ndarray, 'n h w c'], *, columns: int | None = None) -> Image.Image:
  """Images beside each other, as a picture that a notebook shows; `.save('grid.png')` writes it."""
  return Image.fromarray(image_grid.grid(np.asarray(images), columns=columns))
