"""An objective whose networks multiply in another way, such as in eight bits (models/layers/quantized.py).

  multiplied_by(objective, int8_dot_general)

It holds for every `Linear` of the phases' networks, frozen ones too; sampling does not change.
"""

from typing import Any

from jaxgen.models.layers.linear import DotGeneral, products
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.typing import Array, Batch, Float, Key


def multiplied_by(objective: Objective, dot_general: DotGeneral) -> Objective:
  """`objective` with `dot_general` as the product of all linear layers in training."""

  def with_products(phase: Phase) -> Phase:
    def loss(
      params: dict[str, Any], state: Any, frozen: Any, batch: Batch, key: Key[Array, '']
    ) -> tuple[Float[Array, ''], Aux]:
      with products(dot_general):
        return phase.loss(params, state, frozen, batch, key)

    return phase._replace(loss=loss)

  return objective._replace(phases=tuple(map(with_products, objective.phases)))
