"""Regularisers: terms of a GAN's losses that keep its training stable.

Of the discriminator D, x real, x^ generated, both as they are before augmentation:

  R1        gamma / 2 |grad D(x)|^2                                                (1)  Mescheder et al. 2018
  R2        gamma / 2 |grad D(x^)|^2                                               (2)  the same
  penalty   weight (|grad D(u x + (1 - u) x^)| - target)^2,  u ~ U(0, 1)           (3)  Gulrajani et al. 2017
  drift     weight D(x)^2                                                          (4)  Karras et al. 2018

Of the generator, with J the Jacobian of the image in w and y normal noise (Karras et al. 2020, StyleGAN2):

  path length   weight (|J^T y| - a)^2,   |J^T y| the root mean square over layers, a its moving mean        (5)

A regulariser that runs every k-th step is a phase of its own, an optimizer update whose loss is k times the penalty,
so that its mean gradient stays the same (lazy regularisation); with k = 1 it is a term of its network's loss.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.styles import random_noise
from jaxgen.processes.process import sum_per_image
from jaxgen.typing import Array, Cond, Float, Key

Judge = Callable[[Array], Array]  # images -> logits, without a state to update
Schedule = float | Callable[[Array], Array]  # a number, or a function of the step


class DiscriminatorPenalty(NamedTuple):
  """Eqs. 1 to 4.

  Attributes:
    name: name of the metric, and of the phase if lazy.
    value: `(judge, real, fake, step, key) -> penalties`, one for each image.
    every: interval in steps.
  """

  name: str
  value: Callable[[Judge, Array, Array, Array, Array], Array]
  every: int = 1


class GeneratorPenalty(NamedTuple):
  """Eq. 5.

  Attributes:
    name: name of the phase, the metric, and the entry of `state.extra`.
    init: initial value of that entry.
    value: `(generator, variables, kept, z, cond, keys) -> (penalties, metrics, kept)`.
    every: interval in steps.
  """

  name: str
  init: Callable[[], Any]
  value: Callable[[nn.Module, Any, Any, Array, Cond, Array], tuple[Array, dict[str, Array], Any]]
  every: int = 1


def at(schedule: Schedule, step: Array) -> Array:
  return jnp.float32(schedule(step) if callable(schedule) else schedule)


def squared_slope(judge: Judge, images: Float[Array, 'b ...']) -> Float[Array, ' b']:
  """|grad D|^2 of each image; where the images of a batch share statistics, of the sum of their logits."""
  return sum_per_image(jax.grad(lambda x: jnp.sum(judge(x)))(images) ** 2)


def r1(gamma: Schedule, *, every: int = 1) -> DiscriminatorPenalty:
  """Eq. 1."""
  return DiscriminatorPenalty(
    'r1', lambda judge, real, fake, step, key: at(gamma, step) / 2 * squared_slope(judge, real), every
  )


def r2(gamma: Schedule, *, every: int = 1) -> DiscriminatorPenalty:
  """Eq. 2."""
  return DiscriminatorPenalty(
    'r2', lambda judge, real, fake, step, key: at(gamma, step) / 2 * squared_slope(judge, fake), every
  )


def gradient_penalty(weight: Schedule = 10.0, *, target: float = 1.0, every: int = 1) -> DiscriminatorPenalty:
  """Eq. 3."""

  def value(judge: Judge, real: Array, fake: Array, step: Array, key: Array) -> Array:
    u = jax.random.uniform(key, (len(real),) + (1,) * (real.ndim - 1))
    slope = jnp.sqrt(squared_slope(judge, u * real + (1 - u) * fake) + 1e-12)
    return at(weight, step) * (slope - target) ** 2

  return DiscriminatorPenalty('gradient_penalty', value, every)


def drift(weight: Schedule = 1e-3, *, every: int = 1) -> DiscriminatorPenalty:
  """Eq. 4: keeps the logits of a Wasserstein discriminator near zero."""
  return DiscriminatorPenalty('drift', lambda judge, real, fake, step, key: at(weight, step) * judge(real) ** 2, every)


def path_length(weight: float = 2.0, *, every: int = 4, decay: float = 0.01, shrink: int = 2) -> GeneratorPenalty:
  """Eq. 5, for a generator with `styles` and `images` (StyleGAN2's).

  Args:
    weight: weight of the penalty.
    every: interval in steps.
    decay: how far a moves towards each batch's mean.
    shrink: the batch is this many times smaller.
  """

  def value(
    generator: Any, variables: Any, kept: Array, z: Array, cond: Cond, keys: Key[Array, ' b']
  ) -> tuple[Array, dict[str, Array], Any]:
    # Rows i shrink, so that every device keeps rows it holds.
    z, keys, cond = jax.tree.map(lambda x: x[::shrink] if x.ndim else x, (z, keys, cond))
    noise_keys, y_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    ws = generator.apply(variables, z, cond, method='styles')

    def projection(ws: Array) -> Array:
      images = generator.apply(variables, ws, random_noise(noise_keys), method='images')
      y = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(y_keys)
      return jnp.sum(images * y) / math.sqrt(images.shape[1] * images.shape[2])

    lengths = jnp.sqrt(jnp.square(jax.grad(projection)(ws)).sum(2).mean(1) + 1e-12)
    mean = kept + decay * (jnp.mean(lengths) - kept)
    new = jax.lax.stop_gradient(mean)
    return weight * (lengths - mean) ** 2, {'length': jnp.mean(lengths), 'mean': new}, new  # Eq. 5

  return GeneratorPenalty('path_length', lambda: jnp.zeros(()), value, every)
