"""What configs of text to image on avatars share, as plain functions: config_parts for words.

`vocabulary` and `captioned` make the data; `avatars_evaluators` makes the measurements: a grid of prompts, FID, and the
share of attributes that samples show as held-out and as seen prompts say; `avatars_experiment` an Experiment with them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen import ema, sharding
from jaxgen.config_parts import grid_and_fid, held_out, muon_and_adam, run_options, warmup_cosine
from jaxgen.data.captions import sample_captions, tokenized
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.avatars_captions import LENGTH, describe
from jaxgen.data.loader import Loader
from jaxgen.data.sources import fits_in_memory, held_out_split, source
from jaxgen.data.tokenizers.tokenizer import Tokenizer, encode_all
from jaxgen.data.tokenizers.words import from_captions
from jaxgen.evaluators.avatars import avatar_attributes, prompts
from jaxgen.evaluators.base import Evaluator
from jaxgen.evaluators.generate import make_generate
from jaxgen.experiment import Experiment
from jaxgen.objectives.base import Objective
from jaxgen.pretrained import attribute_classifier
from jaxgen.typing import Float

Tokenize = Callable[[Sequence[str]], Mapping[str, np.ndarray]]  # texts -> fields of a batch
Beside = Callable[[Float[np.ndarray, 'n h w c']], Mapping[str, np.ndarray]]  # pictures -> further fields of a batch


def split_of(c: ConfigDict, split: str) -> Dataset:
  """A split of the avatars that `c.dataset` names."""
  return source(c.dataset, split, resolution=c.resolution)


def vocabulary(dataset: Dataset) -> Tokenizer:
  """A tokenizer of the words of avatars' captions."""
  return from_captions(sample_captions(dataset, number=4000, describe=describe), length=LENGTH)


def captioned(c: ConfigDict, dataset: Dataset, words: Tokenizer) -> Loader:
  """Batches with captions that are phrased anew at each step."""
  return Loader(
    dataset,
    batch_size=c.batch_size,
    seed=c.seed,
    transform=tokenized(words, describe=describe),
    transform_name=words.fingerprint,
    cache=fits_in_memory(dataset),
  )


def avatars_evaluators(
  c: ConfigDict,
  objective: Objective,
  data: Loader,
  *,
  mesh: jax.sharding.Mesh,
  tokenize: Tokenize,
  splits: Mapping[str, Dataset],
  protocol: Mapping[str, Any],
  beside: Beside = lambda images: {},
) -> tuple[Evaluator, ...]:
  """A grid of prompts, FID, and attributes as prompts of each split say.

  Args:
    c: config with `sampling.batch_size`, `samples`, `fid` and `attributes`.
    objective: what is sampled.
    data: the training data, for FID's captions.
    mesh: the mesh.
    tokenize: prompts to the fields of a batch.
    splits: 'test' and 'seen' of avatars.
    protocol: sampler and guidance, written beside FID.
    beside: conditions beside the text, made of the pictures that the prompts describe.
  """
  test = prompts(splits['test'], number=c.samples.prompts)
  ids = tokenize(test.texts)
  generate = make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size)

  def of_rows(num: int) -> Mapping[str, np.ndarray]:
    rows = data.rows(0, range(num))
    return {**{name: rows[name] for name in ids}, **beside(np.asarray(rows['image']))}

  shown = {**ids, **beside(test.images)}
  shown = {name: np.repeat(rows, c.samples.per_prompt, axis=0) for name, rows in shown.items()}
  evaluators = grid_and_fid(
    c,
    generate,
    mesh=mesh,
    shown={'cond': shown, 'num': len(test.texts) * c.samples.per_prompt, 'rows': test.texts},
    reference=lambda: splits['seen'],
    cond=of_rows,
    protocol={'prompts': 'captions of the training data', **protocol},
  )
  return evaluators + avatar_attributes(
    generate,
    attribute_classifier.load(),
    mesh=mesh,
    splits=splits,
    encode=lambda prompts: {**tokenize(prompts.texts), **beside(prompts.images)},
    **c.attributes,
  )


def avatars_experiment(
  c: ConfigDict,
  objective: Objective,
  *,
  data: Loader,
  words: Tokenizer,
  trains: tuple[str, ...] = ('net', 'text'),
  beside: Beside = lambda images: {},
  frozen: Mapping[str, Any] = {},
  protocol: Mapping[str, Any] = {},
) -> Experiment:
  """The experiment of a network that makes avatars from words.

  Args:
    c: the config.
    objective: the objective.
    data: made by `captioned`.
    words: tokenizer of the captions.
    trains: keys of the parameters, all but 'net' trained by Adam.
    beside: conditions beside the text, made of the pictures that the prompts describe.
    frozen: networks that are used and not trained.
    protocol: what is written beside the FID.
  """
  mesh = sharding.make_mesh(**c.mesh)

  def tokenize(texts: Sequence[str]) -> Mapping[str, np.ndarray]:
    return {'text': encode_all(words, texts)}

  evaluators = avatars_evaluators(
    c,
    objective,
    data,
    mesh=mesh,
    tokenize=tokenize,
    splits={split: split_of(c, split) for split in ('test', 'seen')},
    protocol=protocol,
    beside=beside,
  )
  evaluators += held_out(
    c, objective, lambda: held_out_split(c.dataset, resolution=c.resolution), mesh=mesh, transform=data.transform
  )
  adam = optax.adam(c.optimizer.adam, b2=c.optimizer.b2)
  return Experiment(
    objective=objective,
    optimizers={'net': muon_and_adam(c.optimizer, steps=c.steps), **{name: adam for name in trains if name != 'net'}},
    learning_rates={'net': warmup_cosine(c.optimizer.muon, warmup=c.optimizer.warmup, steps=c.steps)},
    averages={name: ema.Average(name, ema.warmup(c.ema)) for name in trains},
    data=data,
    mesh=mesh,
    frozen=frozen,
    evaluators=evaluators,
    tokenize=tokenize,
    **run_options(c),
  )
