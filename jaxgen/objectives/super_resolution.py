"""Enlarging small images: the later stages of Imagen, and the upsampler of DALL-E 2.

The network reads a small image that was enlarged, as more channels beside x_t, and the time s of noise in it:

  (1)  concat = alpha(s) up(low) + sigma(s) eps,   level = network_time(s),   eps of each image's own key

In training `low` is the batch's image made small, and s uniform in [0, most] for each image; at sampling `low` is an
image of another model and s is a choice: some noise hides that model's faults (noise conditioning augmentation). The
network of an objective of this kind has `level`, and reads `concat`.

  super_resolution(objective, low=32)        `low` and `level` are then fields of the batch       (2)

Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding"; Ho et al. 2021,
"Cascaded Diffusion Models for High Fidelity Image Generation".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.conditioning import Conditioner, Field
from jaxgen.processes.process import Process, corrupt, image_noise
from jaxgen.typing import Array, Batch, Cond, Float, Key

LOW, LEVEL = 'low', 'level'  # the small image, float b h w c in [-1, 1]; s of Eq. 1, float b
Resize = Callable[[Array, tuple[int, int]], Array]


def enlarged_by(image: Float[Array, 'b h w c'], size: tuple[int, int]) -> Float[Array, 'b h2 w2 c']:
  """up(low) of Eq. 1: bilinear."""
  return jax.image.resize(image, (len(image), *size, image.shape[-1]), 'linear')


def bicubic(image: Float[Array, 'b h w c'], size: tuple[int, int]) -> Float[Array, 'b h2 w2 c']:
  """up(low) of DALL-E 2's upsamplers."""
  return jax.image.resize(image, (len(image), *size, image.shape[-1]), 'cubic')


def corner_aligned(image: Float[Array, 'b h w c'], size: tuple[int, int]) -> Float[Array, 'b h2 w2 c']:
  """up(low) of DeepFloyd IF: bilinear between the centres of the corner pixels, which stay corners."""
  scale = jnp.asarray([(large - 1) / max(small - 1, 1) for large, small in zip(size, image.shape[1:3], strict=True)])
  shape = (len(image), *size, image.shape[-1])
  return jax.image.scale_and_translate(image, shape, (1, 2), scale, 0.5 - 0.5 * scale, 'linear', antialias=False)


def reduced_by(image: Float[Array, 'b h w c'], size: tuple[int, int]) -> Float[Array, 'b h2 w2 c']:
  """The batch's image made small: bilinear with antialiasing, which for half the side weighs 4x4 pixels."""
  return jax.image.resize(image, (len(image), *size, image.shape[-1]), 'linear', antialias=True)


def enlarging(
  conditioner: Conditioner, process: Process | None, *, size: tuple[int, int], low: int, up: Resize = enlarged_by
) -> Conditioner:
  """Adds a small image and the level of its noise to a conditioner.  # Eq. 1

  Args:
    conditioner: the text's, or another's.
    process: makes the noise; without one there is no noise, and no level.
    size: height and width of the large image.
    low: height of the small one.
    up: enlarges.

  Raises:
    ValueError: the sizes do not fit.
  """
  if size[0] % low or not 0 < low < size[0]:
    raise ValueError(f'images of {low} pixels cannot be enlarged to {size[0]}; the larger side is a multiple of it')
  wanted = (low, size[1] * low // size[0])

  def encode(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    rest = {name: value for name, value in fields.items() if name not in (LOW, LEVEL)}
    cond = dict(conditioner.encode(params, frozen, rest, keys)) if rest or not conditioner.fields else {}
    if LOW not in fields:
      return cond
    image = fields[LOW].astype(jnp.float32)
    if image.shape[1:3] != wanted:
      raise ValueError(
        f'the stage before makes images of {image.shape[1]}x{image.shape[2]}, and this one enlarges {wanted[0]}x'
        f'{wanted[1]}; their sizes have to fit'
      )
    large = up(image, size)
    if process is None:
      return cond | {'concat': large}
    s = fields[LEVEL]
    eps = image_noise(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), large.shape[1:])
    return cond | {'concat': corrupt(process, large, eps, s), 'level': process.network_time(s)}

  fields = {**conditioner.fields, LOW: Field(), **({} if process is None else {LEVEL: Field()})}
  return conditioner._replace(fields=fields, encode=encode)


def super_resolution(objective: Objective, *, low: int, most: float = 1.0) -> Objective:
  """An objective whose conditioner is from `enlarging`, with `low` and `level` made of the batch's images.  # Eq. 2

  Args:
    objective: the objective of large images.
    low: height of the small images.
    most: largest time of their noise in training, in (0, 1].
  """
  if not 0 < most <= 1:
    raise ValueError(f'most is {most}; it is the largest time of the noise in small images, in (0, 1]')

  def added(batch: dict[str, Any], key: Key[Array, '']) -> dict[str, Any]:
    image = batch['image']
    size = (low, image.shape[2] * low // image.shape[1])
    level = jax.vmap(lambda key: jax.random.uniform(key, maxval=most))(jax.random.split(key, len(image)))
    return batch | {LOW: reduced_by(image.astype(jnp.float32), size), LEVEL: level}

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    shaped = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in batch.items()}
    made = jax.eval_shape(added, shaped, jax.random.key(0))
    return objective.init(key, frozen, {**batch, LOW: made[LOW], LEVEL: made[LEVEL]})

  def on_pairs(phase: Phase) -> Phase:
    def loss(
      params: dict[str, Any], state: Any, frozen: Any, batch: Batch, key: Key[Array, '']
    ) -> tuple[Float[Array, ''], Aux]:
      level_key, key = jax.random.split(key)
      return phase.loss(params, state, frozen, added(batch, level_key), key)

    return phase._replace(loss=loss)

  return objective._replace(init=init, phases=tuple(on_pairs(phase) for phase in objective.phases))
