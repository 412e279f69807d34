"""A grid of samples from the same noise each time, which shows each image form during training."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate, to_host
from jaxgen.train_state import sampling_params

_MOST_ROWS = 16


def rows_of_classes(class_names: Sequence[str], *, per_class: int) -> dict[str, Any]:
  """Options of `samples` for a row of images of each class; a near-square grid where there are no classes.

  Args:
    class_names: names of the labels; of many, 16 from the first to the last are shown.
    per_class: images in a row; 0 for no grid.

  Raises:
    ValueError: `per_class` is negative.
  """
  if per_class < 0:
    raise ValueError(f'per_class is {per_class}; it must be 0, for no grid, or more')
  if not class_names:
    return {'cond': {}, 'num': per_class * 8, 'rows': None}
  shown = np.unique(np.linspace(0, len(class_names) - 1, min(len(class_names), _MOST_ROWS)).round().astype(np.int32))
  labels = np.repeat(shown.astype(np.int32), per_class)
  return {'cond': {'label': labels}, 'num': len(labels), 'rows': [class_names[label] for label in shown]}


def samples(
  generate: Generate,
  *,
  mesh: jax.sharding.Mesh,
  cond: Mapping[str, np.ndarray],
  num: int,
  every: int,
  seed: int = 0,
  rows: Sequence[str] | None = None,
  name: str = 'samples',
) -> Evaluator:
  """Saves samples/NAME_STEP.png from the averaged parameters.

  Args:
    generate: the function that `make_generate` returns.
    mesh: the mesh it was made for.
    cond: conditioning of the `num` images, as host arrays.
    num: images in the grid.
    every: interval in steps.
    seed: seed of the noise.
    rows: a label for each row of the grid; None for a near-square grid.
    name: name of the files.

  Raises:
    ValueError: no images, or rows that do not divide them.
  """
  lines = len(rows or ('',))
  if num < 1 or num % lines:
    raise ValueError(f'a grid of {name} has {num} images for {lines} row(s); each row needs as many, 1 or more')

  def run(context: Context) -> dict[str, float]:
    images, done = [], 0
    for batch, count in generate(sampling_params(context.state), context.frozen, cond, seed=seed, num=num):
      images.append(to_host(batch, mesh)[:count])
      done += count
      context.progress(name, done, num)
    context.writer.images(context.step, name, np.concatenate(images), rows=rows)
    return {}

  return Evaluator(name, every, run)
