"""Mode coverage and collapse of a generator while it trains."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate
from jaxgen.metrics.modes import coverage
from jaxgen.sharding import replicated
from jaxgen.train_state import sampling_params


def modes(
  generate: Generate,
  mode_of: Callable[[Context, np.ndarray], np.ndarray],
  *,
  mesh: jax.sharding.Mesh,
  num_modes: int,
  cond: Mapping[str, np.ndarray],
  num: int,
  every: int,
  share: float = 0.1,
  seed: int = 0,
  name: str = 'modes',
) -> Evaluator:
  """Counts the modes that samples reach: metrics/modes.py.

  Args:
    generate: the function that `make_generate` returns.
    mode_of: `(context, images)` to the mode of each of the float images `n h w c`, -1 for none.
    mesh: the mesh `generate` was made for.
    num_modes: number of modes of the data.
    cond: conditioning of the `num` images, as host arrays.
    num: samples.
    every: interval in steps.
    share: share of its fair part that a mode needs to count; 0 asks for a single sample.
    seed: seed of the noise.
    name: name of its numbers.
  """

  def run(context: Context) -> dict[str, float]:
    found = [mode_of(context, images) for images in _images(generate, context, mesh, cond, seed, num)]
    result = coverage(np.concatenate(found), num_modes=num_modes, share=share)
    return {name: float(result.covered), f'{name}_quality': result.quality, f'{name}_kl': result.kl}

  return Evaluator(name, every, run)


def collapse(
  generate: Generate,
  *,
  mesh: jax.sharding.Mesh,
  cond: Mapping[str, np.ndarray],
  images: np.ndarray,
  num: int,
  every: int,
  threshold: float = 0.2,
  seed: int = 0,
) -> Evaluator:
  """Warns when the images are all but one: when their deviation falls below `threshold` of the data's.

  Args:
    generate: the function that `make_generate` returns.
    mesh: the mesh it was made for.
    cond: conditioning of the `num` images; of one class where the classes differ.
    images: images of the data, to compare with.
    num: samples.
    every: interval in steps.
    threshold: see above.
    seed: seed of the noise.
  """

  spread = deviation(images)

  def run(context: Context) -> dict[str, float]:
    ratio = deviation(np.concatenate(list(_images(generate, context, mesh, cond, seed, num)))) / spread
    if not ratio >= threshold:
      context.writer.text(
        f'The generator has collapsed at step {context.step:,}: {num} images differ {ratio:.2f} times as much as the '
        'data. Go back to an earlier checkpoint; more regularisation (R1), a smaller learning rate or augmentation help'
      )
    return {'diversity': ratio, 'collapsed': float(not ratio >= threshold)}

  return Evaluator('collapse', every, run)


def deviation(images: np.ndarray) -> float:
  """The standard deviation of a pixel over images, root mean square over pixels."""
  return float(np.sqrt(np.asarray(images, np.float64).var(axis=0).mean()))


def _images(generate: Generate, context: Context, mesh, cond, seed: int, num: int):
  gather, done = jax.jit(lambda images: images, out_shardings=replicated(mesh)), 0
  for batch, count in generate(sampling_params(context.state), context.frozen, cond, seed=seed, num=num):
    yield np.asarray(gather(batch))[:count]
    done += count
    context.progress('modes', done, num)
