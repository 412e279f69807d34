"""Whether samples show what their prompts ask for: attribute accuracy, with chance and real images beside it."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate
from jaxgen.metrics.attributes import accuracy
from jaxgen.sharding import replicated
from jaxgen.train_state import sampling_params


def attributes(
  generate: Generate,
  predict: Callable[[Context, np.ndarray], np.ndarray],
  *,
  mesh: jax.sharding.Mesh,
  cond: Mapping[str, np.ndarray],
  truth: np.ndarray,
  real: np.ndarray,
  names: Sequence[str],
  every: int,
  seed: int = 0,
  name: str = 'attributes',
) -> Evaluator:
  """Samples images for held-out prompts and classifies what they show.

  Args:
    generate: the function that `make_generate` returns.
    predict: `(context, images)` to a value of each attribute, int [n a], of float images in [-1, 1].
    mesh: the mesh `generate` was made for.
    cond: conditioning of the images, as host arrays: the prompts' token ids.
    truth: attributes that the prompts ask for, -1 where one leaves an attribute open.
    real: images of the same records, for the classifier's own accuracy.
    names: names of the attributes.
    every: interval in steps.
    seed: seed of the noise.
    name: name of its numbers: NAME, NAME_real, NAME_chance and NAME/ATTRIBUTE.
  """
  if not len(truth) == len(real) == len(next(iter(cond.values()))):
    raise ValueError(f'{len(truth)} records, {len(real)} real images, {len(next(iter(cond.values())))} prompts')

  def run(context: Context) -> dict[str, float]:
    seen = [predict(context, images) for images in _images(generate, context, mesh, cond, seed, len(truth))]
    found = accuracy(np.concatenate(seen), truth, names=names)
    known = accuracy(predict(context, real), truth, names=names)
    numbers = {name: found.overall, f'{name}_real': known.overall, f'{name}_chance': found.chance}
    return numbers | {f'{name}/{attribute}': value for attribute, value in found.by_name.items()}

  return Evaluator(name, every, run)


def recognised(
  predict: Callable[[Context, np.ndarray], np.ndarray],
  *,
  real: np.ndarray,
  truth: np.ndarray,
  names: Sequence[str],
  every: int,
  name: str,
) -> Evaluator:
  """Measures the classifier itself on real images; the arguments are those of `attributes`."""

  def run(context: Context) -> dict[str, float]:
    found = accuracy(predict(context, real), truth, names=names)
    numbers = {name: found.overall, f'{name}_chance': found.chance}
    return numbers | {f'{name}/{attribute}': value for attribute, value in found.by_name.items()}

  return Evaluator(name, every, run)


def _images(
  generate: Generate, context: Context, mesh: jax.sharding.Mesh, cond: Mapping[str, np.ndarray], seed: int, num: int
) -> Iterator[np.ndarray]:
  gather, done = jax.jit(lambda images: images, out_shardings=replicated(mesh)), 0
  for batch, count in generate(sampling_params(context.state), context.frozen, cond, seed=seed, num=num):
    yield np.asarray(gather(batch))[:count]
    done += count
    context.progress('attributes', done, num)
