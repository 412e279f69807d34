"""Rewards: what images are worth, for models that are trained by their own samples.

  (1)  attributes   r = mean over the attributes a that the prompt asks for of p_a(y_a | x)      in [0, 1]
  (2)  clip_score   r = (1 + cos(image, text)) / 2                                               in [0, 1]

p_a is a classifier's probability. Eq. 1 says a little about every image, where the share of right answers is the same
for most of a group. A model that is trained by a reward learns what the reward cannot see, too: watch FID beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.attributes import net_logits, split
from jaxgen.typing import Array, Float

# (frozen, images in [-1, 1], entries of the batch that the images were made for) -> a number for each; more is better
Reward = Callable[[Any, Array, Mapping[str, Array]], Array]


def attributes(net: nn.Module, sizes: Sequence[int], *, field: str = 'named', name: str = 'judge') -> Reward:
  """Eq. 1.

  Args:
    net: a classifier of attributes (objectives/attributes.py); `frozen[name]` holds its parameters.
    sizes: number of values of each attribute.
    field: entry of the batch with the values that the prompt names, int b a, -1 where one is left open.
    name: name of the frozen classifier.
  """

  def reward(frozen: Any, images: Float[Array, 'b h w c'], batch: Mapping[str, Array]) -> Float[Array, ' b']:
    truth, logits = batch[field], split(net_logits(net, frozen[name], images, train=False), sizes)
    right = [
      jnp.take_along_axis(jax.nn.softmax(each), jnp.maximum(truth[:, a : a + 1], 0), axis=1)
      for a, each in enumerate(logits)
    ]
    known = truth >= 0
    return jnp.sum(jnp.where(known, jnp.concatenate(right, axis=1), 0.0), axis=1) / jnp.maximum(known.sum(1), 1)

  return reward


def clip_score(
  net: nn.Module,
  *,
  prepare: Callable[[Array], Array] = lambda images: images,
  field: str = 'text',
  name: str = 'clip',
) -> Reward:
  """Eq. 2.

  Args:
    net: `(ids, images) -> Similarity`, such as `models.clip.CLIP`; `frozen[name]` holds its parameters.
    prepare: what the network sees of images in [-1, 1], such as `models.clip.preprocess` with its size.
    field: entry of the batch with the CLIP's token ids.
    name: name of the frozen CLIP.
  """

  def reward(frozen: Any, images: Float[Array, 'b h w c'], batch: Mapping[str, Array]) -> Float[Array, ' b']:
    found: Any = net.apply({'params': frozen[name]}, batch[field], prepare(images))
    return (1 + jnp.sum(found.image * found.text, axis=-1)) / 2

  return reward
