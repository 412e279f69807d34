"""Rollouts: groups of images that a model samples for its prompts while it trains, and their rewards.

  (1)  A_gi = (r_gi - mean_i r_gi) / (std + 1e-4),   std over the group or over all images     the advantage of image i

The images of a step are sampled with the step's key, so a run stays a function of its config and seed. What has to last
for several steps is kept in a pool, a ring of rows in `state.extra`: each step puts its new rows in the place of the
oldest, and learns from rows that it takes at random from those that are there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.objectives.base import SampleFn
from jaxgen.objectives.conditioning import Conditioner
from jaxgen.objectives.preference.rewards import Reward
from jaxgen.typing import Array, Batch, Float, Key

Rows = dict[str, Any]  # arrays with one leading axis


class Rollouts(NamedTuple):
  """How images are sampled and judged.

  Attributes:
    sample: makes them; `Objective.sample`, perhaps with fewer steps than images for people take.
    reward: judges them.
    prompts: number of prompts of a step, the first ones of its batch.
    group: images of each prompt.
  """

  sample: SampleFn
  reward: Reward
  prompts: int
  group: int

  def check(self) -> None:
    """Raises ValueError where there is nothing to compare."""
    if self.prompts < 1 or self.group < 2:
      raise ValueError(f'{self.group} images for each of {self.prompts} prompts; wanted two or more, of one or more')

  def repeated(self, batch: Batch) -> Batch:
    """The prompts of a step, each as many times in turn as a group has images: rows g i."""
    if self.prompts > len(batch['image']):
      raise ValueError(f'{self.prompts} prompts of a batch of {len(batch["image"])}; use a larger batch')
    return {name: jnp.repeat(rows[: self.prompts], self.group, axis=0) for name, rows in batch.items()}

  def draw(
    self, params: dict[str, Any], frozen: Any, batch: Batch, conditioner: Conditioner, key: Key[Array, '']
  ) -> tuple[Float[Array, 'b h w c'], Batch, Float[Array, 'g i']]:
    """Images, the rows of the batch that they were sampled for, and the rewards by group; nothing is differentiated."""
    repeated = self.repeated(batch)
    keys = jax.random.split(key, self.prompts * self.group)
    images = self.sample(params, frozen, conditioner.select(repeated), keys)
    rewards = self.reward(frozen, images, repeated).reshape(self.prompts, self.group)
    return jax.tree.map(jax.lax.stop_gradient, (images, repeated, rewards))


def advantages(rewards: Float[Array, 'g i'], *, over_all: bool = False) -> Float[Array, 'g i']:
  """Eq. 1; with `over_all`, std is that of all rewards of the step."""
  centred = rewards - rewards.mean(axis=1, keepdims=True)
  std = jnp.std(rewards) if over_all else jnp.std(rewards, axis=1, keepdims=True)
  return centred / (std + 1e-4)


def empty_pool(like: Rows, size: int) -> dict[str, Any]:
  """A pool of `size` rows of the shapes of `like`."""
  rows = jax.tree.map(lambda a: jnp.zeros((size, *a.shape[1:]), a.dtype), like)
  return {'rows': rows, 'drawn': jnp.int32(0)}


def put(pool: dict[str, Any], rows: Rows) -> dict[str, Any]:
  """The pool with new rows in the place of the oldest."""
  size, new = (len(jax.tree.leaves(tree)[0]) for tree in (pool['rows'], rows))
  place = (pool['drawn'] + jnp.arange(new)) % size
  return {
    'rows': jax.tree.map(lambda old, a: old.at[place].set(a), pool['rows'], rows),
    'drawn': pool['drawn'] + new,
  }


def take(pool: dict[str, Any], num: int, key: Key[Array, '']) -> Rows:
  """Rows at random, of those that are there."""
  size = len(jax.tree.leaves(pool['rows'])[0])
  row = jax.random.randint(key, (num,), 0, jnp.clip(pool['drawn'], 1, size))
  return jax.tree.map(lambda a: a[row], pool['rows'])
