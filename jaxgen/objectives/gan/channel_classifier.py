"""A classifier that is trained beside an objective, to find the mode of stacked digits that an image shows.

  (1)  L = -mean over channels of log p(y_c | x_c),   y_c the label's digit of channel c        in nats

  with_channel_classifier(objective, net) -> objective

The wrapped objective has one more network, 'channel_classifier', with a phase of its own, which sees real images only,
one channel at a time. Nothing else of the objective changes, and its samples do not depend on it; evaluators/stacked.py
classifies them with it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.typing import Array, Batch, Float, Key, Params

NAME, LABEL = 'channel_classifier', 'label'


def with_channel_classifier(objective: Objective, net: nn.Module, *, num_classes: int) -> Objective:
  """`objective`, with `net` trained on the images' channels.

  Args:
    objective: any objective; the batch has the 'label' of datasets/stacked.py.
    net: `(x, t, cond, *, train) -> logits` of gray images, such as `ConvClassifier`; t is 0 and cond empty.
    num_classes: number of classes of a channel.
  """

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    objective_key, own_key = jax.random.split(key)
    made = objective.init(objective_key, frozen, batch)
    x = jnp.zeros((1, *batch['image'].shape[1:3], 1))
    variables = net.init(own_key, x, jnp.zeros(1), {}, train=False)
    return made | {'params': made['params'] | {NAME: variables['params']}}

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    images = batch['image'].astype(jnp.float32)
    logits = channel_logits(net, params[NAME], images, train=True)
    y = batch[LABEL][:, None] // num_classes ** jnp.arange(images.shape[-1])[None] % num_classes
    each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.mean(each), Aux({'accuracy': jnp.mean(jnp.float32(jnp.argmax(logits, axis=-1) == y))})  # Eq. 1

  return objective._replace(init=init, phases=(*objective.phases, Phase(NAME, NAME, loss)))


def channel_logits(
  net: nn.Module, params: Params, images: Float[Array, 'b h w c'], *, train: bool = False
) -> Float[Array, 'b c y']:
  """The logits of each channel's classes."""
  each = jnp.moveaxis(images, -1, 1)
  x = each.reshape(-1, *each.shape[2:], 1)
  logits: Any = net.apply({'params': params}, x, jnp.zeros(len(x)), {}, train=train)
  return logits.reshape(*each.shape[:2], -1)
