"""Measures whether edits follow their instructions and keep all other attributes.

  changed = share of edits whose changed attribute is the one requested                               (1)
  kept    = share of the attributes that both pictures show alike and that the edit still shows        (2)

Both are seen by a classifier of attributes, whose own numbers on the right answers stand beside them: NAME_changed_real
and NAME_kept_real. `kept` of the picture before the edit is the most that doing nothing gets.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from jaxgen.data.captions import Describe
from jaxgen.data.dataset import Dataset
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate
from jaxgen.pretrained.attribute_classifier import Classify
from jaxgen.sharding import replicated
from jaxgen.train_state import sampling_params
from jaxgen.typing import Int

Attributes = Int[np.ndarray, 'n a']


def scores(seen: Attributes, was: Attributes, wanted: Attributes) -> tuple[float, float]:
  """Eqs. 1 and 2.

  Args:
    seen: attributes that a classifier sees in the edits.
    was, wanted: attributes of the pictures before the edit and as they should be; -1 for what cannot be seen.
  """
  both = (was >= 0) & (wanted >= 0)
  changed, kept = both & (was != wanted), both & (was == wanted)
  if not changed.any() or not kept.any():
    raise ValueError('no pair changes an attribute and keeps others, so that edits cannot be distinguished from copies')
  right = seen == wanted
  return float(right[changed].mean()), float(right[kept].mean())


def edits(
  generate: Generate,
  classify: Classify,
  *,
  mesh: jax.sharding.Mesh,
  dataset: Dataset,
  describe: Describe,
  encode: Callable[[Sequence[str]], Mapping[str, np.ndarray]],
  number: int,
  every: int,
  seed: int = 0,
  name: str = 'edits',
) -> Evaluator:
  """Edits pictures of `dataset` and classifies what they show.

  Args:
    generate: from `make_generate`.
    classify: from `pretrained.attribute_classifier.load`.
    mesh: the mesh `generate` was made for.
    dataset: pairs with `before`, `was` and `attributes`, such as a split of avatars_pairs.
    describe: the instruction of a pair.
    encode: instructions to conditions, as host arrays.
    number: number of pairs, spread over the dataset.
    every: interval in steps.
    seed: seed of the noise and of the phrasing.
    name: name of its numbers.
  """
  number = min(number, dataset.num_examples)
  records = [dataset.read(i * dataset.num_examples // number) for i in range(number)]
  texts = [describe(record, np.random.default_rng([seed, i])) for i, record in enumerate(records)]
  was, wanted, before, after = (
    np.stack([record[field] for record in records]) for field in ('was', 'attributes', 'before', 'image')
  )
  cond = {**encode(texts), 'before': before}

  def run(context: Context) -> dict[str, float]:
    gather, seen = jax.jit(lambda images: images, out_shardings=replicated(mesh)), []
    for batch, count in generate(sampling_params(context.state), context.frozen, cond, seed=seed, num=number):
      seen.append(classify(np.asarray(gather(batch))[:count]))
      context.progress(name, sum(map(len, seen)), number)
    changed, kept = scores(np.concatenate(seen), was, wanted)
    real_changed, real_kept = scores(classify(after), was, wanted)
    return {
      f'{name}_changed': changed,
      f'{name}_kept': kept,
      f'{name}_changed_real': real_changed,
      f'{name}_kept_real': real_kept,
    }

  return Evaluator(name, every, run)
