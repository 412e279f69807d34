"""Students of a model that is trained already: one network learns, its encoders and its teacher are frozen.

frozen holds the teacher's networks under the names of its objective's parameters, as it holds an adapter's base, so a
student can be a LoRA too (objectives/adapted.py): frozen['net'] is the teacher, frozen['text'] an encoder of both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxgen.objectives.base import Denoising, InitFn, Objective, denoising_of, trained_names
from jaxgen.objectives.network import NET, weights
from jaxgen.processes.process import Denoiser
from jaxgen.samplers.sampler import Guide, Without
from jaxgen.typing import Array, Cond, Key


def taught(objective: Objective) -> Denoising:
  """The parts of the teacher's sampling, whose encoders are read from `frozen`."""
  d, encoders = denoising_of(objective), [name for name in trained_names(objective) if name != NET]

  def condition(
    params: dict[str, Any], frozen: Any, batch: Mapping[str, Array], keys: Key[Array, ' b']
  ) -> tuple[Cond, Without]:
    return d.condition({**params, **{name: frozen[name] for name in encoders}}, frozen, dict(batch), keys)

  return d._replace(condition=condition)


def teacher_of(d: Denoising, frozen: Any, without: Without, guide: Sequence[Guide]) -> Denoiser:
  """The teacher's denoiser, guided."""
  denoise, process = d.denoiser({NET: weights(frozen)}, frozen), d.process({})
  for wrap in guide:
    denoise = wrap(denoise, process, without)
  return denoise


def init_of_student(objective: Objective) -> InitFn:
  """`Objective.init` of the student's network alone."""

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {'params': {NET: weights(objective.init(key, frozen, batch)['params'])}}

  return init


def condition_of(d: Denoising, frozen: Any, batch: Mapping[str, Array], key: Key[Array, '']) -> tuple[Cond, Without]:
  """The condition of a batch, encoded by frozen networks, without drops."""
  return d.condition({}, frozen, dict(batch), jax.random.split(key, len(batch['image'])))
