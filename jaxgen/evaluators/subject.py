"""Measures whether a model that learned a subject shows it in new prompts, and keeps the diversity of its class.

  subject   = share of the subject's attributes that samples of new prompts show                       (1)
  diversity = mean over attributes of 1 - sum_v p_v^2, p_v the share of samples of the class with v    (2)

The subject's attributes are those that a classifier sees alike in nearly all of its pictures. Eq. 2 is the chance that
two samples differ in an attribute; beside it stands that of the base, where the evaluator runs before the first step.
"""

from collections.abc import Mapping

import jax
import numpy as np

from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate
from jaxgen.pretrained.attribute_classifier import Classify
from jaxgen.sharding import replicated
from jaxgen.train_state import sampling_params
from jaxgen.typing import Float, Int

_ALIKE = 0.8  # share of the subject's pictures

Attributes = Int[np.ndarray, 'n a']


def constant(seen: Attributes, *, alike: float = _ALIKE) -> Int[np.ndarray, ' a']:
  """The value of each attribute that the share `alike` of pictures has; -1 where there is none."""
  found = np.full(seen.shape[1], -1, seen.dtype)
  for i, column in enumerate(seen.T):
    values, counts = np.unique(column, return_counts=True)
    if counts.max() >= alike * len(column):
      found[i] = values[counts.argmax()]
  return found


def right(seen: Attributes, wanted: Int[np.ndarray, ' a']) -> float:
  """Eq. 1."""
  known = wanted >= 0
  if not known.any():
    raise ValueError('the pictures of the subject have no attribute in common; give pictures of one subject')
  return float((seen == wanted)[:, known].mean())


def diversity(seen: Attributes) -> float:
  """Eq. 2."""
  shares = [np.unique(column, return_counts=True)[1] / len(column) for column in seen.T]
  return float(np.mean([1 - np.sum(share**2) for share in shares]))


def subject(
  generate: Generate,
  classify: Classify,
  *,
  mesh: jax.sharding.Mesh,
  pictures: Float[np.ndarray, 'n h w 3'],
  new: Mapping[str, np.ndarray],
  of_class: Mapping[str, np.ndarray],
  free: tuple[int, ...] = (),
  every: int,
  seed: int = 0,
  name: str = 'subject',
) -> Evaluator:
  """Measures Eqs. 1 and 2, as NAME_right and NAME_class_diversity.

  Args:
    generate: from `make_generate`.
    classify: from `pretrained.attribute_classifier.load`.
    mesh: the mesh `generate` was made for.
    pictures: the subject's, in [-1, 1].
    new: conditions of prompts with the subject, one row for each sample.
    of_class: conditions of prompts with its class.
    free: attributes that the new prompts change, by number; they are left out of Eq. 1.
    every: interval in steps.
    seed: seed of the noise.
    name: name of the numbers.
  """
  wanted = constant(classify(pictures))
  wanted[list(free)] = -1

  def run(context: Context) -> dict[str, float]:
    gather = jax.jit(lambda images: images, out_shardings=replicated(mesh))

    def seen(cond: Mapping[str, np.ndarray]) -> Attributes:
      num, found = len(next(iter(cond.values()))), []
      for batch, count in generate(sampling_params(context.state), context.frozen, cond, seed=seed, num=num):
        found.append(classify(np.asarray(gather(batch))[:count]))
        context.progress(name, sum(map(len, found)), num)
      return np.concatenate(found)

    return {f'{name}_right': right(seen(new), wanted), f'{name}_class_diversity': diversity(seen(of_class))}

  return Evaluator(name, every, run)
