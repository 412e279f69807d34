"""Several models in a row, each conditioned on the output of the one before: Imagen's stages; DALL-E 2's prior and
decoder.

  y_1 = sample_1(cond_1);   y_i = sample_i(cond_i, takes_i = y_{i-1})                           (1)

A stage is a trained model and the name of the field that takes the images, or the embeddings, of the stage before:
'low' of `objectives/super_resolution.py`, 'embedding' of `objectives/embedded.py`. Stage i samples with its own keys.

  variations: an image's own embedding in place of the prior's;  interpolation: embeddings between two images'  (2)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.generation.interpolate import slerp
from jaxgen.objectives.base import Objective, SampleFn
from jaxgen.objectives.conditioning import Conditioner
from jaxgen.objectives.network import NET
from jaxgen.typing import Array, Cond, Float, Key


class Link(NamedTuple):
  """A stage of a cascade that is one model; see `chained`.

  Attributes:
    objective: its objective, which samples it.
    trees: `(params, frozen)` of the model -> those of the stage.
    takes, fields: as in `Stage`.
  """

  objective: Objective
  trees: Callable[[Any, Any], tuple[Any, Any]]
  takes: str | None = None
  fields: Mapping[str, float] = {}


class Stage(NamedTuple):
  """A model of a cascade.

  Attributes:
    objective: its objective, which samples it.
    params, frozen: its arrays.
    takes: name of the field that takes the output of the stage before; None for the first.
    fields: conditions beside the prompt, one value for all images, such as {'level': 0.1}.
  """

  objective: Objective
  params: dict[str, Any]
  frozen: dict[str, Any]
  takes: str | None = None
  fields: Mapping[str, float] = {}


def check(stages: Sequence[Stage], cond: Mapping[str, Any], *, first: Any = None) -> None:
  """Raises ValueError where stages do not fit each other: sizes, or fields that nothing gives; see `cascade`."""
  if not stages:
    raise ValueError('a cascade has no stages; give it one model or more')
  made: Any = None if first is None else jax.ShapeDtypeStruct(first.shape, first.dtype)
  for number, stage in enumerate(stages, 1):
    if (stage.takes is None) != (number == 1 and first is None):
      raise ValueError(
        f'stage {number} of the cascade: `takes` names the field for the output of the stage before; None for the first'
      )
    known = {*cond, *stage.fields, *([stage.takes] if stage.takes else [])}
    missing = sorted(set(stage.objective.conditioner.fields) - known)
    if missing:
      raise ValueError(f'stage {number} of the cascade wants {missing[0]!r}, and has {sorted(known)}')
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), (stage.params, stage.frozen))
    fields = _fields(stage, _shapes(cond), made)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), len(next(iter(cond.values())))))
    try:
      made = jax.eval_shape(stage.objective.sample, *like, fields, keys)
    except (ValueError, TypeError) as error:
      raise ValueError(f'stage {number} of the cascade does not fit the one before: {error}') from error


def cascade(
  stages: Sequence[Stage], cond: Cond, keys: Key[Array, ' b'], *, first: Array | None = None
) -> list[Float[Array, 'b ...']]:
  """The output of each stage, Eq. 1; that of the last are the images.

  Args:
    stages: the models, in order.
    cond: fields of the prompts, with a batch axis, of all stages.
    keys: one for each image.
    first: input of the first stage, such as embeddings of Eq. 2.
  """
  made, result = first, []
  for number, stage in enumerate(stages):
    own = jax.vmap(lambda key, number=number: jax.random.fold_in(key, number))(keys)
    made = stage.objective.sample(stage.params, stage.frozen, _fields(stage, cond, made), own)
    result.append(made)
  return result


def chained(links: Sequence[Link]) -> Objective:
  """A cascade as one model, whose samples are those of its last stage; it is trained stage by stage."""

  def sample(params: Any, frozen: Any, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b ...']:
    stages = [Stage(link.objective, *link.trees(params, frozen), link.takes, link.fields) for link in links]
    return cascade(stages, cond, keys)[-1]

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    raise ValueError('a cascade is trained stage by stage: give one of its stages')

  fields = {
    name: field
    for link in links
    for name, field in link.objective.conditioner.fields.items()
    if name != link.takes and name not in link.fields
  }
  networks = {f'{number}': link.objective.networks[NET] for number, link in enumerate(links, 1)}
  return Objective(init, (), sample, None, Conditioner(fields), networks)


def of_one_noise(sample: SampleFn, key: Key[Array, '']) -> SampleFn:
  """`sample`, with the noise of one key for all images: they differ by their conditions alone."""
  return lambda params, frozen, cond, keys: sample(params, frozen, cond, jnp.broadcast_to(key, keys.shape))


def _fields(stage: Stage, cond: Mapping[str, Any], before: Any) -> dict[str, Any]:
  """The fields of a stage."""
  size = before.shape[0] if before is not None else next(iter(cond.values())).shape[0]
  given = {**cond, **{name: jnp.full(size, value, jnp.float32) for name, value in stage.fields.items()}}
  if stage.takes is not None and before is not None:
    given[stage.takes] = before
  return {name: given[name] for name in stage.objective.conditioner.fields if name in given}


def _shapes(cond: Mapping[str, Any]) -> dict[str, Any]:
  return {name: jax.ShapeDtypeStruct(np.shape(value), value.dtype) for name, value in cond.items()}


def between(a: Float[Array, 'd'], b: Float[Array, 'd'], weights: Float[Array, ' b']) -> Float[Array, 'b d']:
  """Embeddings on the way from one image's (weight 0) to another's (weight 1), of lengths in between.  # Eq. 2"""
  rows = [jnp.broadcast_to(x[None], (len(weights), *x.shape)) for x in (a, b)]
  length = [jnp.linalg.norm(row, axis=-1, keepdims=True) for row in rows]
  turned = slerp(rows[0] / length[0], rows[1] / length[1], weights)
  return turned * ((1 - weights[:, None]) * length[0] + weights[:, None] * length[1])
