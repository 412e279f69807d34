"""ControlNet on avatars: a branch beside a trained text-to-image model learns to follow edges.

  jaxgen train --config avatars                                            # the base
  jaxgen train --config controlnet --config.base=runs/avatars
  jaxgen sample --run runs/controlnet --prompt 'a woman with red hair' --control canny=photo.png --out woman.png

The branch is a copy of some of the base's blocks; only it is trained. Its edges are Canny's, made of each picture as it
is read, or HED's (--config.control=hed, after `jaxgen weights get hed`); --config.control=given takes the records' own,
such as the maps of parts of --config.dataset=avatars_segments. Half of the captions are dropped, so that the control
alone says much. edges_f1 is the F1, to the pixel, of the edges of samples without words and those that they were given,
and edges_f1_without the same at scale 0, which is the base.

Result, seed 0: edges_f1 0.28, edges_f1_without 0.16; 0.23 after half of the steps. 15 minutes on one core.
"""

from typing import Any

import numpy as np
import optax
from ml_collections import ConfigDict

from configs import avatars
from jaxgen import ema, sharding
from jaxgen.adapters.controlnet import COPY_TRANSFORMER, NAME, control
from jaxgen.config_parts import held_out, run_options, warmup_cosine
from jaxgen.data.captions import tokenized
from jaxgen.data.controls import canny, with_control, with_scale
from jaxgen.data.loader import Loader
from jaxgen.data.sources import fits_in_memory, held_out_split
from jaxgen.data.tokenizers.tokenizer import encode_all
from jaxgen.evaluators.controls import edges_followed
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.samples import samples
from jaxgen.experiment import Experiment
from jaxgen.init_from import InitFrom, later
from jaxgen.models.control_transformer import ControlledTransformer, ControlTransformer
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.objectives.adapted import adapted
from jaxgen.objectives.conditioning import trained_text
from jaxgen.objectives.controlled import controlled
from jaxgen.pretrained import hed
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.guidance import classifier_free


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'base': 'runs/avatars',  # the run of avatars whose model the branch controls
      'base_dtype': 'bfloat16',  # dtype of the frozen networks
      'dataset': 'avatars32',
      'control': 'canny',  # or hed (soft edges), or given: that of the records, such as of avatars_segments
      'blocks': 3,  # blocks of the branch
      'steps': 1000,
      'batch_size': 32,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'drop_rate': 0.5,  # probability that a caption is dropped
      'shift': 1.0,  # shift of times towards noise; the base's is larger, but edges form late
      'optimizer': {'rate': 5e-4, 'warmup': 50},
      'ema': 0.99,
      'clip_norm': 1.0,
      'sampling': {'scale': 2.0, 'batch_size': 64},
      'samples': {'every': 250, 'pictures': 8, 'per_picture': 4},  # pictures of the test split
      'held_out': {'every': 250, 'num': 128, 'batch_size': 64},  # the loss on pictures of the test split
      'edges': {'every': 250, 'number': 64},
      'log_every': 50,
      'evaluate_first': True,
      'checkpoint': {'every': 250, 'keep': 2},
    }
  )


def controls(kind: str, transform: Any) -> Any:
  """The transform of the loader that adds a control of that kind."""
  match kind:
    case 'canny':
      return with_control(transform, canny)
    case 'hed':
      return with_control(transform, hed.load())
    case 'given':
      return with_scale(transform)
  raise ValueError(f'config.control is {kind!r}; wanted canny, hed or given')


def build(c: ConfigDict) -> Experiment:
  mesh, base = sharding.make_mesh(**c.mesh), avatars.of_run(c.base)
  stage = avatars.build(base)
  base.shift = c.shift
  words = avatars.vocabulary(*avatars.opened(base, 'train'))
  opening = ConfigDict({'dataset': c.dataset, 'resolution': base.resolution})
  (dataset, describe), (test, _) = (avatars.opened(opening, split) for split in ('train', 'test'))
  transform = controls(c.control, tokenized(words, describe=describe))
  data = Loader(
    dataset,
    batch_size=c.batch_size,
    seed=c.seed,
    transform=transform,
    transform_name=f'{words.fingerprint} {c.control}',
    cache=fits_in_memory(dataset),
  )
  encoder = TextEncoder(vocabulary=words.size, pad=words.pad, **base.text)
  net = avatars.NETWORKS[base.network](**base.model)
  conditioner = controlled(trained_text(encoder, length=words.length, drop_rate=c.drop_rate))
  objective = adapted(
    avatars.denoising(
      base,
      ControlledTransformer(net, (ControlTransformer(net, c.blocks),)),
      shape=data.spec['image'].shape[1:],
      guide=(classifier_free(c.sampling.scale, ('text',)), clip()),
      conditioner=conditioner,
    ),
    control(base=('net', 'text')),
  )
  generate = make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size)

  def fields_of(number):
    records = [transform(test.read(i), np.random.default_rng(i)) for i in range(number)]
    return {name: np.stack([record[name] for record in records]) for name in conditioner.fields}

  shown = {name: np.repeat(rows, c.samples.per_picture, axis=0) for name, rows in fields_of(c.samples.pictures).items()}
  num, edges = c.samples.pictures * c.samples.per_picture, c.control == 'canny'
  silent = fields_of(c.edges.number) | {'text': encode_all(words, [''] * c.edges.number)}
  schedule = warmup_cosine(c.optimizer.rate, warmup=c.optimizer.warmup, steps=c.steps)
  rows = [describe(test.read(i), np.random.default_rng(i)) for i in range(c.samples.pictures)]
  return Experiment(
    objective=objective,
    optimizers={NAME: optax.adam(schedule)},
    learning_rates={NAME: schedule},
    averages={NAME: ema.Average(NAME, ema.warmup(c.ema))},
    data=data,
    mesh=mesh,
    frozen=later(c.base, stage.objective, stage.data.spec, dtype=c.base_dtype),
    evaluators=(
      samples(generate, mesh=mesh, cond=shown, num=num, every=c.samples.every, rows=rows),
      *((edges_followed(generate, mesh=mesh, cond=silent, every=c.edges.every, reach=0),) if edges else ()),
      *held_out(
        c, objective, lambda: held_out_split(c.dataset, resolution=base.resolution), mesh=mesh, transform=data.transform
      ),
    ),
    tokenize=lambda texts: {'text': encode_all(words, texts)},
    init_from=InitFrom(c.base, **COPY_TRANSFORMER),
    **run_options(c),
  )
