"""Negative prompts: guidance away from what a text says, rather than away from no text.

  D = D(c_0) + w (D(c) - D(c_0))                                  (1)    c_0 is the negative prompt

With Eq. 1 of samplers/guidance.py, whose c_0 says nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import Denoising, Objective
from jaxgen.samplers.sampler import Without
from jaxgen.typing import Array, Cond, Key


def negated(objective: Objective, fields: Mapping[str, Array | np.ndarray]) -> Denoising:
  """The objective's sampling with `fields` in place of their nulls.

  Args:
    objective: an objective with a `denoising` and a conditioner that is told these fields.
    fields: the negative condition of one image, with a batch axis of 1, such as {'text': int32 1 k}.

  Raises:
    ValueError: a field is not told, or cannot be left out.
  """
  parts, conditioner = objective.denoising, objective.conditioner
  missing = sorted(set(fields) - set(conditioner.nullable))
  if parts is None or missing:
    raise ValueError(
      f'a negative prompt needs a model that is guided away from no text; this one can leave out '
      f'{", ".join(conditioner.nullable) or "nothing"}'
    )

  def condition(params: dict[str, Any], frozen: Any, batch: dict[str, Array], keys: Key[Array, ' b']):
    cond, without = parts.condition(params, frozen, batch, keys)
    said = conditioner.encode(params, frozen, {name: jnp.asarray(value) for name, value in fields.items()}, keys[:1])

    def instead(names: Sequence[str]) -> Cond:
      return {**without(names), **said}

    told: tuple[Cond, Without] = (cond, instead)
    return told

  return parts._replace(condition=condition)
