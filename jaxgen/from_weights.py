"""Opens a published generator in the place of a run, for `jaxgen sample --weights`.

Its networks are placed leaf by leaf on the mesh, as a run's frozen ones are, so that memory holds each once.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxgen import frozen as frozen_networks
from jaxgen import sharding
from jaxgen.experiment import Experiment
from jaxgen.models.rules import RULES
from jaxgen.objectives.conditioning import Conditioner
from jaxgen.pretrained import published, single_file
from jaxgen.pretrained.pipeline import UNCONDITIONAL, Pipeline
from jaxgen.pretrained.prompts import chunks_of, prompts
from jaxgen.pretrained.text_to_image import frozen_of, image_size, objective_of
from jaxgen.sample import Trained
from jaxgen.train_state import TrainState


class NoData(NamedTuple):
  """The data of a generator that is not trained."""

  class_names: tuple[str, ...] = ()

  def rows(self, step: int, indices: Any) -> dict[str, Any]:
    raise ValueError('a published generator has no data of its own; give it --prompt or --label')


def opened(path: str | os.PathLike, *, prediction: str | None = None, dtype: Any = jnp.float32) -> Pipeline:
  """The generator of a folder or file.

  Args:
    path: path of the folder or file.
    prediction: what its network predicts, 'epsilon' or 'v_prediction', where the file does not say.
    dtype: of the networks' activations.

  Raises:
    ValueError: it is a network alone.
  """
  if prediction is not None and single_file.is_checkpoint(path):
    return single_file.load(path, prediction=prediction, dtype=dtype)
  it = published.load(path, dtype=dtype)
  if not isinstance(it, Pipeline):
    raise ValueError(f'{path} is a {type(it.net).__name__} alone; wanted a folder with model_index.json')
  if prediction is not None:
    return it._replace(schedule=it.schedule._replace(prediction_type=prediction))
  return it


def trained(
  pipeline: Pipeline,
  *,
  texts: Sequence[str] = (),
  size: tuple[int, int] | None = None,
  steps: int = 50,
  guidance: float | None = None,
  image_guidance: float | None = None,
  tile: int | None = None,
  double_shift: bool = False,
  extend: Callable[[Conditioner], Conditioner] = lambda conditioner: conditioner,
) -> Trained:
  """A generator in the form that `sample.restore` gives for a run.

  Args:
    pipeline: the generator.
    texts: the prompts that it will be given, negative ones too; they decide the number of CLIP's chunks.
    size: height and width of the images, in pixels; the size it was trained at by default.
    steps: steps of its sampler.
    guidance: scale of guidance; its usual one by default.
    image_guidance: scale of guidance by the picture that is edited, of InstructPix2Pix.
    tile: decodes in tiles of this many latents a side.
    double_shift: of a flow, as diffusers has it.
    extend: adds conditions beside the prompt, such as controls.
  """
  mesh = sharding.make_mesh()
  size = size or image_size(pipeline)
  told = prompts(pipeline, chunks=chunks_of(pipeline, texts), size=size, guidance=guidance)
  objective = objective_of(
    pipeline,
    size=size,
    steps=steps,
    guidance=guidance,
    image_guidance=image_guidance,
    told=told,
    tile=tile,
    double_shift=double_shift,
    extend=extend,
  )
  networks = {name: frozen_networks.frozen(tree) for name, tree in frozen_of(pipeline).items()}
  placed = _place({**networks, 'net': frozen_networks.frozen(pipeline.denoiser.params)}, mesh)
  params = {'net': placed.pop('net')}
  stage = Experiment(
    objective=objective,
    optimizers={},
    averages={},
    data=NoData(),
    steps=0,
    mesh=mesh,
    frozen=networks,
    tokenize=None if pipeline.kind in UNCONDITIONAL else told.tokenize,
  )
  state = TrainState(
    step=jnp.zeros((), jnp.int32), bad_steps=jnp.zeros((), jnp.int32), params=params, opt_state={}, ema={}, extra={}
  )
  return Trained(stage, state, placed)


def _place(networks: dict[str, frozen_networks.Frozen], mesh: Any) -> dict[str, Any]:
  places = sharding.shard_tree(frozen_networks.shapes(networks), mesh, known=RULES)
  return frozen_networks.place(networks, places)
