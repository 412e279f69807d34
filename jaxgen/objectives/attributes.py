"""A classifier of several attributes at once, to measure what samples show.

  (1)  L = -mean over images of sum_a [y_a >= 0] log p_a(y_a | x)       in nats

y_a is the value of attribute a, -1 where an image has none. The logits of all attributes are one vector, in order.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen.models.attributes import net_logits, split
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.typing import Array, Batch, Float, Key

NAME, FIELD = 'attributes', 'attributes'


def attribute_classifier(net: nn.Module, *, sizes: Sequence[int], shift: int = 2) -> Objective:
  """The objective; it makes no images.

  Args:
    net: `(x, t, cond, *, train) -> logits` with sum(sizes) of them, such as `ConvClassifier`; t is 0 and cond empty.
    sizes: number of values of each attribute.
    shift: images are moved by up to this many pixels while training, each at random, edges repeated.
  """

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    x = jnp.zeros((1, *batch['image'].shape[1:]))
    return {'params': {NAME: net.init(key, x, jnp.zeros(1), {}, train=False)['params']}}

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    images = moved(batch['image'].astype(jnp.float32), key, shift)
    truth = batch[FIELD]
    each = split(net_logits(net, params[NAME], images, train=True), sizes)
    known = truth >= 0
    nats = [
      optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(truth[:, i], 0))
      for i, logits in enumerate(each)
    ]
    right = jnp.stack([jnp.argmax(logits, axis=-1) for logits in each], axis=1) == truth
    total = jnp.mean(jnp.sum(jnp.where(known, jnp.stack(nats, axis=1), 0.0), axis=1))  # Eq. 1
    return total, Aux({'accuracy': jnp.sum(right & known) / jnp.sum(known)})

  def sample(*_: Any) -> Array:
    raise ValueError('a classifier of attributes makes no images')

  return Objective(init=init, phases=(Phase(NAME, NAME, loss),), sample=sample)


def moved(images: Float[Array, 'b h w c'], key: Key[Array, ''], most: int) -> Float[Array, 'b h w c']:
  """Each image moved by up to `most` pixels up or down and left or right, with its edges repeated."""
  if not most:
    return images
  padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode='edge')
  first = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)
  cut = jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (*start, 0), images.shape[1:]))
  return cut(padded, first)
