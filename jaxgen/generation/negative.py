"""A negative condition: guidance leads away from it instead of from the null condition."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Denoising
from jaxgen.objectives.conditioning import Conditioner
from jaxgen.samplers.sampler import Without
from jaxgen.typing import Array, Cond, Key


def away_from(d: Denoising, conditioner: Conditioner, fields: Mapping[str, Any]) -> Denoising:
  """`d`, guided away from `fields`.

  Args:
    d: parts of an objective's sampling, with classifier-free guidance.
    conditioner: the objective's.
    fields: the negative condition of all images, of one image's shape, as in a batch: `{'text': token_ids}`. They
      replace the nulls of their fields.
  """
  unknown = sorted(set(fields) - set(conditioner.nullable))
  if unknown:
    raise ValueError(f'{unknown[0]!r} cannot be negative: it has no null; fields with one are {conditioner.nullable}')
  rows = {name: jnp.asarray(value)[None] for name, value in fields.items()}

  def condition(
    params: dict[str, Any], frozen: Any, batch: dict[str, Array], keys: Key[Array, ' b']
  ) -> tuple[Cond, Without]:
    cond, without = d.condition(params, frozen, batch, keys)
    negative = conditioner.encode(params, frozen, rows, jax.random.split(jax.random.key(0), 1))
    return cond, lambda names: {**without(names), **negative}

  return d._replace(condition=condition)
