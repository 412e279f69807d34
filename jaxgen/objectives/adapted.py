"""Training of adapters: parameters that are added to frozen networks.

  adapted(objective, Added(init, join)) -> objective

The inner objective sees its own parameters, which `join` makes from the trained and the frozen ones: a network with
a LoRA, with a control branch, with new tokens. It knows nothing of the adapter, and so every objective can be adapted.
"""

from typing import Any

import jax

from jaxgen.adapters.added import Added
from jaxgen.models.layers.remat import Policy, each_block
from jaxgen.objectives.base import Aux, Denoising, Objective, Phase
from jaxgen.samplers.sampler import Without
from jaxgen.typing import Array, Batch, Cond, Float, Key

Params = dict[str, Any]  # trees by name, as in `state.params`


def adapted(objective: Objective, added: Added, *, remat: Policy = None) -> Objective:
  """`objective` on the networks that `added.join` makes; only what is added is trained.

  Args:
    objective: one that trains all that it knows in a single phase, as diffusion does.
    added: the adapter.
    remat: policy of the networks' blocks, such as `layers.remat.policy('dots')`, where they have none of their own. An
      adapter's gradients need few of the activations, so that cheap ones are computed again, one block at a time.
  """
  if len(objective.phases) != 1:
    raise ValueError(f'{len(objective.phases)} phases cannot be adapted as one; wanted an objective of a single phase')
  phase = objective.phases[0]

  def init(key: Key[Array, ''], frozen: Any, batch: Batch) -> dict[str, Any]:
    def make(key: Key[Array, '']) -> Params:
      return objective.init(key, frozen, batch)['params']

    extra = jax.eval_shape(lambda key: objective.init(key, frozen, batch).get('extra', {}), key)
    made: dict[str, Any] = {'params': added.init(key, make)}
    return made | ({'extra': objective.init(key, frozen, batch)['extra']} if extra else {})

  def loss(params: Params, state: Any, frozen: Any, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    with each_block(remat):
      params, frozen = added.join(params, frozen)
      return phase.loss(params, state, frozen, batch, key)

  def sample(params: Params, frozen: Any, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    params, frozen = added.join(params, frozen)
    return objective.sample(params, frozen, cond, keys)

  return objective._replace(
    init=init,
    phases=(Phase(phase.name, added.trains, loss, phase.every),),
    sample=sample,
    denoising=None if objective.denoising is None else _denoising(objective.denoising, added),
  )


def _denoising(d: Denoising, added: Added) -> Denoising:
  def condition(params: Params, frozen: Any, batch: Batch, keys: Key[Array, ' b']) -> tuple[Cond, Without]:
    return d.condition(*added.join(params, frozen), batch, keys)

  return d._replace(
    denoiser=lambda params, frozen: d.denoiser(*added.join(params, frozen)),
    condition=condition,
  )
