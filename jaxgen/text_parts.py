"""What configs share that go on from a trained model of avatars, as plain functions: config_parts for text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxgen.config_parts import grid_and_fid
from jaxgen.data.captions import sample_captions
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.avatars_captions import describe
from jaxgen.data.loader import Loader
from jaxgen.evaluators.avatars import avatar_attributes
from jaxgen.evaluators.base import Evaluator
from jaxgen.evaluators.generate import make_generate
from jaxgen.objectives.base import Objective
from jaxgen.pretrained import attribute_classifier

Tokenize = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


def avatars_evaluators(
  c: ConfigDict,
  objective: Objective,
  data: Loader,
  *,
  mesh: jax.sharding.Mesh,
  tokenize: Tokenize,
  splits: Mapping[str, Dataset],
  protocol: Mapping[str, Any],
) -> tuple[Evaluator, ...]:
  """The evaluators of configs/avatars.py for another objective of the same prompts: grid, FID and attributes.

  Args:
    c: config with `sampling.batch_size`, `samples`, `fid` and `attributes`.
    objective: what is sampled.
    data: the training data, for FID's captions.
    mesh: the mesh.
    tokenize: prompts to the fields of a batch.
    splits: 'test' and 'seen' of avatars.
    protocol: sampler and guidance, written beside FID.
  """
  prompts = sample_captions(splits['test'], number=c.samples.prompts, describe=describe)
  shown = {name: np.repeat(rows, c.samples.per_prompt, axis=0) for name, rows in tokenize(prompts).items()}
  generate = make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size)
  names = tuple(objective.conditioner.fields)

  def conditions(num: int) -> dict[str, np.ndarray]:
    rows = data.rows(0, range(num))
    return {name: rows[name] for name in names}

  shown_options = {'cond': shown, 'num': len(prompts) * c.samples.per_prompt, 'rows': prompts}
  evaluators = grid_and_fid(
    c,
    generate,
    mesh=mesh,
    shown=shown_options,
    reference=lambda: splits['seen'],
    cond=conditions,
    protocol={'prompts': 'captions of the training data', **protocol},
  )
  return evaluators + avatar_attributes(
    generate, attribute_classifier.load(), mesh=mesh, splits=splits, encode=tokenize, **c.attributes
  )
