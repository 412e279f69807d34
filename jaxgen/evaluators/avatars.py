"""Attribute accuracy of a model of avatars, for pairs of words that it has seen and for pairs that it has not.

The prompts are full captions of records of `test` (held-out pairs alone) and `seen`. Only attributes that a caption
names are measured: 'none' is mostly left unsaid.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.avatars_captions import attributes_in, caption
from jaxgen.data.datasets.avatars_styles import ATTRIBUTES
from jaxgen.evaluators.attributes import attributes
from jaxgen.evaluators.base import Evaluator
from jaxgen.evaluators.generate import Generate
from jaxgen.pretrained.attribute_classifier import Classify
from jaxgen.typing import Float, Int


class Prompts(NamedTuple):
  """Prompts whose right answer is known.

  Attributes:
    texts: full captions.
    truth: the attributes that each asks for, -1 where it leaves one open.
    images: pictures of the same records, in [-1, 1].
  """

  texts: Sequence[str]
  truth: Int[np.ndarray, 'n a']
  images: Float[np.ndarray, 'n h w c']


def prompts(dataset: Dataset, *, number: int, seed: int = 0) -> Prompts:
  """Prompts from `number` records spread over a split of avatars; the phrasing is chosen by `seed`."""
  number = min(number, dataset.num_examples)
  records = [dataset.read(i * dataset.num_examples // number) for i in range(number)]
  texts = [
    caption(record['attributes'], np.random.default_rng([seed, i]), keep=1.0) for i, record in enumerate(records)
  ]
  truth = np.asarray([attributes_in(record['attributes'], text) for record, text in zip(records, texts, strict=True)])
  return Prompts(texts, truth, np.asarray([record['image'] for record in records]))


def avatar_attributes(
  generate: Generate,
  classify: Classify,
  *,
  mesh: jax.sharding.Mesh,
  splits: Mapping[str, Dataset],
  encode: Callable[[Prompts], Mapping[str, np.ndarray]],
  number: int,
  every: int,
) -> tuple[Evaluator, ...]:
  """An evaluator for each split: `attributes_SPLIT` of its prompts, with the classifier's own on real images beside it.

  Args:
    generate: the result of `make_generate`.
    classify: the result of `pretrained.attribute_classifier.load`.
    mesh: the mesh `generate` was made for.
    splits: splits of avatars by name.
    encode: prompts to conditions, as host arrays.
    number: number of prompts of a split; 0 for no evaluator.
    every: interval in steps; 0 for no evaluator.
  """
  made = []
  for split, dataset in splits.items() if number and every else ():
    found = prompts(dataset, number=number)
    made.append(
      attributes(
        generate,
        lambda context, images: classify(np.asarray(images)),
        mesh=mesh,
        cond=encode(found),
        truth=found.truth,
        real=found.images,
        names=ATTRIBUTES,
        every=every,
        name=f'attributes_{split}',
      )
    )
  return tuple(made)
