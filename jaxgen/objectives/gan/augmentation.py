"""Augmentation of the discriminator's inputs, real and generated alike, differentiable and on the device.

An augmentation that happens with a probability below 0.8 does not leak into the generated images, and keeps the
discriminator from memorising a small training set. Adaptive (ADA, Karras et al. 2020, "Training GANs with
Limited Data"): with r_t the mean sign of the discriminator's real logits over `interval` steps,

  (1)  p <- clip(p + sign(r_t - target) * images / ramp, 0, 1)       images seen since the last time

DiffAugment (Zhao et al. 2020) is always on. The pipeline of ADA is in augmentation_pipeline.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.objectives.gan.augmentation_pipeline import Pipeline, augment
from jaxgen.typing import Array, Float, Key


class Augmentation(NamedTuple):
  """T of the objective (gan.py).

  Attributes:
    init: initial value of `state.extra['augmentation']`.
    apply: `(kept, step, images, key) -> images`.
    update: `(kept, step, real logits) -> kept`, after each of the discriminator's steps.
    metrics: `(kept, step) -> scalars by name`.
  """

  init: Callable[[], dict[str, Array]]
  apply: Callable[[Any, Array, Array, Array], Array]
  update: Callable[[Any, Array, Array], Any] = lambda kept, step, logits: kept
  metrics: Callable[[Any, Array], dict[str, Array]] = lambda kept, step: {}


no_augmentation = Augmentation(dict, lambda kept, step, images, key: images)


def adaptive(
  pipeline: Pipeline, *, target: float = 0.6, interval: int = 4, ramp: float = 500_000, start: float = 0.0
) -> Augmentation:
  """Eq. 1.

  Args:
    pipeline: augmentations, each applied with probability p.
    target: value that r_t is held at.
    interval: steps between two changes of p.
    ramp: images in which p can go from 0 to 1.
    start: p before the first step.
  """

  def init() -> dict[str, Array]:
    return {'probability': jnp.float32(start), 'signs': jnp.float32(0), 'steps': jnp.int32(0)}

  def update(kept: dict[str, Array], step: Array, real_logits: Array) -> dict[str, Array]:
    signs, steps = kept['signs'] + jnp.mean(jnp.sign(real_logits)), kept['steps'] + 1
    due = steps >= interval
    change = jnp.sign(signs / steps - target) * interval * len(real_logits) / ramp
    probability = jnp.clip(kept['probability'] + change, 0.0, 1.0)  # Eq. 1
    return {
      'probability': jnp.where(due, probability, kept['probability']),
      'signs': jnp.where(due, 0.0, jax.lax.stop_gradient(signs)),
      'steps': jnp.where(due, 0, steps),
    }

  return Augmentation(
    init,
    lambda kept, step, images, key: augment(pipeline, kept['probability'], images, key),
    update,
    lambda kept, step: {'augmentation': kept['probability']},
  )


def scheduled(pipeline: Pipeline, probability: Callable[[Array], Array]) -> Augmentation:
  """The pipeline with a probability that is a function of the step."""
  return Augmentation(
    dict,
    lambda kept, step, images, key: augment(pipeline, jnp.float32(probability(step)), images, key),
    metrics=lambda kept, step: {'augmentation': jnp.float32(probability(step))},
  )


def diff_augment(*policy: Callable[[Array, Array], Array]) -> Augmentation:
  """DiffAugment: the functions `(image h w c, key) -> image` one after the other; by default all three."""
  functions = policy or (shift_colours, shift, cut)

  def apply(kept: Any, step: Array, images: Float[Array, 'b h w c'], key: Key[Array, '']) -> Array:
    return jax.vmap(lambda image, key: _in_turn(functions, image, key))(images, jax.random.split(key, len(images)))

  return Augmentation(dict, apply)


def _in_turn(functions: Sequence[Callable], image: Array, key: Array) -> Array:
  for function, part in zip(functions, jax.random.split(key, len(functions)), strict=True):
    image = function(image, part)
  return image


def shift_colours(image: Float[Array, 'h w c'], key: Key[Array, '']) -> Float[Array, 'h w c']:
  """Brightness by up to 1/2, saturation between 0 and 2 times, contrast between 1/2 and 3/2 times."""
  brightness, saturation, contrast = jax.random.uniform(key, (3,))
  image = image + (brightness - 0.5)
  gray = image.mean(axis=-1, keepdims=True)
  image = gray + (image - gray) * (2 * saturation)
  mean = image.mean(keepdims=True)
  return mean + (image - mean) * (contrast + 0.5)


def shift(image: Float[Array, 'h w c'], key: Key[Array, ''], ratio: float = 0.125) -> Float[Array, 'h w c']:
  """Moves by whole pixels, up to `ratio` of the side each way, and fills with zeros."""
  height, width, _ = image.shape
  rows, columns = int(height * ratio + 0.5), int(width * ratio + 0.5)
  row_key, column_key = jax.random.split(key)
  padded = jnp.pad(image, ((rows, rows), (columns, columns), (0, 0)))
  corner = (
    jax.random.randint(row_key, (), 0, 2 * rows + 1),
    jax.random.randint(column_key, (), 0, 2 * columns + 1),
    0,
  )
  return jax.lax.dynamic_slice(padded, corner, image.shape)


def cut(image: Float[Array, 'h w c'], key: Key[Array, ''], ratio: float = 0.5) -> Float[Array, 'h w c']:
  """A square of `ratio` of the side is zero; part of it may lie outside."""
  inside = []
  for side, part in zip(image.shape[:2], jax.random.split(key), strict=True):
    size = int(side * ratio + 0.5)
    first = jax.random.randint(part, (), 0, side + 1 - size % 2) - size // 2
    place = jnp.arange(side)
    inside.append((place >= first) & (place < first + size))
  return jnp.where((inside[0][:, None] & inside[1][None])[..., None], 0.0, image)
