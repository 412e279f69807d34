"""Mode coverage of stacked digits while a generator trains, by the classifier that is trained beside it.

Published numbers (VEEGAN, PacGAN) are of 26,000 samples, where a mode counts if any of them shows it. That many samples
spread evenly are still (M - 1) / (2 n) = 0.02 nats from uniform over M = 1,000 modes. An image that is classified as
another class counts for a mode that may be absent: so the accuracy on held-out images is written beside.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.dataset import Dataset
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate
from jaxgen.evaluators.modes import modes
from jaxgen.metrics.modes import stacked_mode
from jaxgen.objectives.gan.channel_classifier import LABEL, NAME, channel_logits
from jaxgen.sharding import replicated


def stacked_modes(
  generate: Generate,
  net: nn.Module,
  *,
  mesh: jax.sharding.Mesh,
  held_out: Dataset,
  num_classes: int,
  every: int,
  num: int = 26_000,
  seed: int = 0,
  name: str = 'modes',
) -> Evaluator:
  """Counts modes with `NAME` of objectives/gan/channel_classifier.py.

  Args:
    generate: the function that `make_generate` returns.
    net: the classifier.
    mesh: the mesh `generate` was made for.
    held_out: stacked images that are not trained on, for the classifier's accuracy on a channel.
    num_classes: number of classes of a channel.
    every: interval in steps.
    num: samples.
    seed: seed of the noise.
    name: name of its numbers.
  """
  classify = jax.jit(
    lambda params, images: jnp.argmax(channel_logits(net, params, images), axis=-1), out_shardings=replicated(mesh)
  )

  def mode_of(context: Context, images: np.ndarray) -> np.ndarray:
    return stacked_mode(np.asarray(classify(context.state.params[NAME], images)), base=num_classes)

  @functools.cache
  def known() -> tuple[np.ndarray, np.ndarray]:
    records = [held_out.read(index) for index in range(held_out.num_examples)]
    return np.stack([record['image'] for record in records]), np.stack([record[LABEL] for record in records])

  channels = held_out.read(0)['image'].shape[-1]
  counted = modes(
    generate,
    mode_of,
    mesh=mesh,
    num_modes=num_classes**channels,
    cond={},
    num=num,
    every=every,
    share=0.0,
    seed=seed,
    name=name,
  )

  def run(context: Context) -> dict[str, float]:
    images, labels = known()
    powers = num_classes ** np.arange(channels)[None]
    predicted = np.asarray(classify(context.state.params[NAME], images))
    accuracy = np.mean(predicted == labels[:, None] // powers % num_classes)
    return counted.run(context) | {f'{name}_accuracy': float(accuracy)}

  return Evaluator(name, every, run)
