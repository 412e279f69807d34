"""Textual inversion: a new word for a few pictures; only its vectors are trained, beside a frozen model.

  jaxgen train --config avatars                                                        # the base
  jaxgen train --config textual_inversion --config.base=runs/avatars --config.dataset=folder:my_cat \
    --config.token='<cat>' --config.start=animal --config.caption='a picture of <cat>'
  jaxgen sample --run runs/textual_inversion --prompt 'a picture of <cat> with glasses' --out cat.png

The base is a run of avatars, whose words are those of its captions; the new word starts as one of them.

Result, of jaxgen/avatars, four vectors, 200 steps of 10 pictures (avatars_subject): 65% of the subject's attributes in
samples of new prompts, where 70% are wanted (docs/results.md).
"""

from typing import Any

import numpy as np
import optax
from ml_collections import ConfigDict

from configs import avatars
from jaxgen import sharding
from jaxgen.adapters.textual_inversion import NAME, start_as, textual_inversion
from jaxgen.config_parts import run_options
from jaxgen.data.captions import tokenized
from jaxgen.data.datasets.avatars_styles import ATTRIBUTES
from jaxgen.data.loader import Loader
from jaxgen.data.sources import fits_in_memory, source
from jaxgen.data.tokenizers.tokenizer import encode_all, with_tokens
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.samples import samples
from jaxgen.evaluators.subject import subject
from jaxgen.experiment import Experiment
from jaxgen.init_from import later
from jaxgen.objectives.adapted import adapted
from jaxgen.pretrained import attribute_classifier


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'base': 'runs/avatars',  # the run whose model learns the word
      'base_dtype': 'bfloat16',  # dtype of the frozen networks
      'dataset': 'avatars32',  # folder:PATH, ...
      'token': '<new>',
      'vectors': 2,
      'start': 'person',  # words of the base whose vectors the new ones start as
      'caption': 'a picture of <new>',
      'steps': 500,
      'batch_size': 16,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'learning_rate': 5e-3,
      'prompts': ('a picture of <new>', '<new> on a blue background', 'a drawing of <new>, green background'),
      'samples': {'every': 100, 'per_prompt': 8},
      'subject': {'every': 0, 'per_prompt': 32},  # attributes of an avatar that samples show; every=0 for none
      'sampling': {'batch_size': 64},
      'log_every': 20,
      'evaluate_first': True,
      'checkpoint': {'every': 100, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  mesh, base_config = sharding.make_mesh(**c.mesh), avatars.of_run(c.base)
  base = avatars.build(base_config)
  words = avatars.vocabulary(*avatars.opened(base_config, 'train'))
  unknown = words.unknown(c.start)
  if unknown or c.token not in c.caption:
    raise ValueError(
      f'config.start is {c.start!r}, of which the base does not know {unknown}; config.caption is {c.caption!r}, which '
      f'should hold config.token, {c.token!r}'
    )
  tokenizer = with_tokens(words, {c.token: c.vectors})
  networks: Any = ('net', 'text')
  added = textual_inversion(
    start_as(words.pieces(c.start), vectors=c.vectors),
    width=base_config.text.width,
    table=lambda frozen: frozen['text']['table']['embedding'],
    base=networks,
  )
  objective = adapted(base.objective, added)
  dataset = source(c.dataset, 'train', resolution=base.data.spec['image'].shape[1])
  data = Loader(
    dataset,
    batch_size=c.batch_size,
    seed=c.seed,
    transform=tokenized(tokenizer, describe=lambda record, rng: c.caption),
    transform_name=f'{tokenizer.fingerprint} {c.caption}',
    cache=fits_in_memory(dataset),
  )
  generate = make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size)

  def prompted(texts, each):
    return {'text': np.repeat(encode_all(tokenizer, list(texts)), each, axis=0)}

  shown = prompted(c.prompts, c.samples.per_prompt)
  evaluators = [
    samples(generate, mesh=mesh, cond=shown, num=len(shown['text']), every=c.samples.every, rows=list(c.prompts))
  ]
  if c.subject.every:
    evaluators.append(
      subject(
        generate,
        attribute_classifier.load(),
        mesh=mesh,
        pictures=np.stack([dataset.read(i)['image'] for i in range(min(dataset.num_examples, 32))]),
        new=prompted(c.prompts, c.subject.per_prompt),
        of_class=prompted([c.start], len(c.prompts) * c.subject.per_prompt),
        free=(ATTRIBUTES.index('background'),),
        every=c.subject.every,
      )
    )
  return Experiment(
    objective=objective,
    optimizers={NAME: optax.adam(c.learning_rate)},
    averages={},
    data=data,
    mesh=mesh,
    frozen={**base.frozen, **later(c.base, base.objective, base.data.spec, dtype=c.base_dtype)},
    evaluators=tuple(evaluators),
    tokenize=lambda texts: {'text': encode_all(tokenizer, texts)},
    **run_options(c),
  )
