"""Opens a published generator in the place of a run, for `jaxgen sample --weights`.

Its networks are placed leaf by leaf on the mesh, as a run's frozen ones are, so that memory holds each once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxgen import frozen as frozen_networks
from jaxgen import sharding
from jaxgen.experiment import Experiment
from jaxgen.generation.cascade import Link, chained
from jaxgen.generation.negative import away_from
from jaxgen.models.rules import RULES
from jaxgen.objectives.base import Objective, denoising_of, sampled
from jaxgen.objectives.conditioning import Conditioner
from jaxgen.objectives.super_resolution import LOW
from jaxgen.pretrained import published, single_file, unclip
from jaxgen.pretrained.pipeline import ENLARGERS, TEXT_ENCODERS, TOKENIZERS, UNCLIP, UNCONDITIONAL, Pipeline
from jaxgen.pretrained.prompts import Tokenize, chunks_of, prompts_of
from jaxgen.pretrained.text_to_image import enlarger_of, frozen_of, image_size, noise_of, objective_of
from jaxgen.sample import Trained
from jaxgen.train_state import TrainState

_STEPS = 50


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
    dtype: dtype of the networks' activations.

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


def check_draws(pipeline: Pipeline) -> None:
  """Raises ValueError where a generator needs another's images."""
  if pipeline.kind in ENLARGERS:
    raise ValueError(
      f'a {pipeline.kind} enlarges images of another generator: give that as --weights, and this as --then'
    )


def trained(
  pipeline: Pipeline,
  *,
  texts: Sequence[str] = (),
  size: tuple[int, int] | None = None,
  steps: int | None = None,
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
    steps: steps of its sampler; 50 by default, 25 of DALL-E 2's prior and decoder.
    guidance: scale of guidance; its usual one by default.
    image_guidance: scale of guidance by the picture that is edited, of InstructPix2Pix.
    tile: decodes in tiles of this many latents a side.
    double_shift: a flow shifts its times twice, as diffusers does.
    extend: adds conditions beside the prompt, such as controls.
  """
  check_draws(pipeline)
  if pipeline.kind in UNCLIP:
    return _unclip(pipeline, size=size, steps=steps, guidance=guidance)
  size = size or image_size(pipeline)
  prompts = prompts_of(pipeline, chunks=chunks_of(pipeline, texts), size=size, guidance=guidance)
  objective = objective_of(
    pipeline,
    size=size,
    steps=_STEPS if steps is None else steps,
    guidance=guidance,
    image_guidance=image_guidance,
    prompts=prompts,
    tile=tile,
    double_shift=double_shift,
    extend=extend,
  )
  tokenize = None if pipeline.kind in UNCONDITIONAL else prompts.tokenize
  return _trained(objective, {'net': pipeline.denoiser.params}, frozen_of(pipeline), tokenize)


def in_a_row(
  pipelines: Sequence[Pipeline],
  *,
  steps: int | None = None,
  guidance: float | None = None,
  negative: str | None = None,
) -> Trained:
  """Generators in a row as one: the first samples, the others enlarge, as DeepFloyd IF's stages do.

  Args:
    pipelines: the generators; one that enlarges and has no text encoder reads the first's.
    steps: steps of each sampler; 50 by default.
    guidance: scale of guidance of each; its usual one by default.
    negative: text that guidance leads away from.

  Raises:
    ValueError: they do not fit each other.
  """
  first = pipelines[0]
  if first.kind in (*ENLARGERS, *UNCLIP):
    raise ValueError(f'a {first.kind} cannot be the first of several generators; wanted one such as an IFPipeline')
  links: list[Link] = []
  trees, frozen, low = {}, {}, (0, 0)
  for number, it in enumerate(pipelines, 1):
    if number > 1 and it.kind not in ENLARGERS:
      raise ValueError(f'generator {number} is a {it.kind}, which enlarges nothing; wanted {" or ".join(ENLARGERS)}')
    shared = not any(name in it.components for name in TEXT_ENCODERS)
    it = _with_text_of(first, it) if shared else it
    tokens = [{name: made.fingerprint for name, made in other.tokenizers.items()} for other in (first, it)]
    if tokens[0] != tokens[1]:
      raise ValueError(f'generator {number} has another tokenizer than the first; stages read the same prompt')
    prompts = prompts_of(it, size=image_size(it))
    options = {'prompts': prompts, 'steps': _STEPS if steps is None else steps, 'guidance': guidance}
    objective = objective_of(it, **options) if number == 1 else enlarger_of(it, low=low, **options)
    if negative is not None:
      null = {
        name: rows[0] for name, rows in prompts.tokenize([negative]).items() if name in prompts.conditioner.nullable
      }
      parts = away_from(denoising_of(objective), objective.conditioner, null)
      objective = objective._replace(sample=sampled(parts))
    names = {name: name if shared or number == 1 else f'{name}_of_{number}' for name in frozen_of(it)}
    frozen |= {names[name]: tree for name, tree in frozen_of(it).items()}
    trees[f'net_{number}'] = it.denoiser.params
    links.append(Link(objective, _trees(f'net_{number}', names), LOW if links else None, noise_of(it) if links else {}))
    low = image_size(it)
  return _trained(chained(links), trees, frozen, prompts_of(first, size=image_size(first)).tokenize)


def _trees(net: str, names: Mapping[str, str]) -> Callable[[Any, Any], tuple[Any, Any]]:
  """The arrays of one generator among those of several."""
  return lambda params, frozen: ({'net': params[net]}, {own: frozen[name] for own, name in names.items()})


def _with_text_of(first: Pipeline, it: Pipeline) -> Pipeline:
  """A generator with the text encoders of another."""
  encoders = {name: first.components[name] for name in TEXT_ENCODERS if name in first.components}
  tokenizers = {name: first.tokenizers[name] for name in TOKENIZERS if name in first.tokenizers}
  return it._replace(components={**it.components, **encoders}, tokenizers=tokenizers)


def _unclip(pipeline: Pipeline, *, size: tuple[int, int] | None, steps: int | None, guidance: float | None) -> Trained:
  """DALL-E 2's stages as one model."""
  own = image_size(pipeline)
  if size not in (None, own):
    raise ValueError(f'this generator makes images of {own[0]}x{own[1]} alone; leave --size out')
  prompts = prompts_of(pipeline, size=own)
  scale = prompts.scale if guidance is None else guidance
  parts = unclip.parts(pipeline, prompts.conditioner, steps=unclip.STEPS if steps is None else steps, guidance=scale)

  def link(part: unclip.Part) -> Link:
    return Link(
      part.objective, lambda params, frozen: ({k: params[v] for k, v in part.trees.items()}, frozen), part.takes
    )

  names = [name for part in parts for name in part.trees.values()]
  params = {name: pipeline.components[name].params for name in names}
  tokenize = prompts.tokenize if 'prior' in pipeline.components else None
  return _trained(chained([link(part) for part in parts]), params, frozen_of(pipeline), tokenize)


def _trained(
  objective: Objective, trained: Mapping[str, Any], frozen: Mapping[str, Any], tokenize: Tokenize | None
) -> Trained:
  """Places networks, as a run's.

  Args:
    objective: what samples them.
    trained, frozen: trees of parameters, the entries of `params` and `frozen`.
    tokenize: prompts to fields.
  """
  mesh = sharding.make_mesh()
  networks = {name: frozen_networks.frozen(tree) for name, tree in frozen.items()}
  placed = _place({**networks, **{name: frozen_networks.frozen(tree) for name, tree in trained.items()}}, mesh)
  params = {name: placed.pop(name) for name in trained}
  stage = Experiment(
    objective=objective,
    optimizers={},
    averages={},
    data=NoData(),
    steps=0,
    mesh=mesh,
    frozen=networks,
    tokenize=tokenize,
  )
  state = TrainState(
    step=jnp.zeros((), jnp.int32), bad_steps=jnp.zeros((), jnp.int32), params=params, opt_state={}, ema={}, extra={}
  )
  return Trained(stage, state, placed)


def _place(networks: dict[str, frozen_networks.Frozen], mesh: Any) -> dict[str, Any]:
  places = sharding.shard_tree(frozen_networks.shapes(networks), mesh, known=RULES)
  return frozen_networks.place(networks, places)
