"""Flow-GRPO on avatars: policy gradients on the steps of a stochastic sampler, by the classifier of attributes.

  jaxgen train --config avatars                                            # the base
  jaxgen train --config avatars_grpo --config.base=runs/avatars

As avatars_nft, but each image is sampled with noise in every step, and the likelihood of those steps is what is
learned.

Result: not run yet.
"""

from functools import partial

import numpy as np
import optax
from ml_collections import ConfigDict

from configs import avatars
from jaxgen import ema
from jaxgen.config_parts import run_options, warmup_cosine
from jaxgen.data.datasets.avatars_captions import prompted
from jaxgen.data.loader import Loader
from jaxgen.experiment import Experiment
from jaxgen.init_from import InitFrom, later
from jaxgen.objectives.preference import rewards
from jaxgen.objectives.preference.grpo import grpo
from jaxgen.pretrained import attribute_classifier
from jaxgen.processes import times
from jaxgen.samplers import grids


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'base': 'runs/avatars',  # run of avatars whose model is trained further
      'dataset': 'avatars32',  # dataset whose prompts are used
      'steps': 100,
      'rollouts': {'prompts': 8, 'group': 8, 'steps': 8, 'noise': 0.7},
      'learned': 2,  # steps of the sampler that are learned from
      'clip': 1e-3,
      'kl': 0.0,
      'optimizer': {'rate': 1e-4, 'b2': 0.95, 'warmup': 5},
      'ema': 0.9,
      'clip_norm': 1.0,
      'samples': {'every': 100},
      'fid': {'every': 100, 'num_samples': 256},
      'attributes': {'every': 50, 'number': 128},
      'evaluate_first': False,  # before the first step it is the base
      'log_every': 10,
      'checkpoint': {'every': 50, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  base = avatars.of_run(c.base)
  base.update({'dataset': c.dataset, 'batch_size': c.rollouts.prompts})
  for name in ('samples', 'fid', 'attributes'):
    base[name].update(c[name])
  stage, words = avatars.build(base), avatars.vocabulary(*avatars.opened(base, 'train'))
  judge, judge_params = attribute_classifier.read()
  objective = grpo(
    stage.objective,
    times=np.asarray(times.shift(grids.uniform(c.rollouts.steps), base.sampling.shift)),
    reward=rewards.attributes(judge, attribute_classifier.SIZES),
    prompts=c.rollouts.prompts,
    group=c.rollouts.group,
    learned=c.learned,
    noise=c.rollouts.noise,
    clip=c.clip,
    kl=c.kl,
  )
  adam = partial(optax.adam, warmup_cosine(c.optimizer.rate, warmup=c.optimizer.warmup, steps=c.steps))
  return stage._replace(
    objective=objective,
    optimizers={name: adam(b2=c.optimizer.b2) for name in ('net', 'text')},
    learning_rates={},
    averages={name: ema.Average(name, ema.warmup(c.ema)) for name in ('net', 'text')},
    data=Loader(
      avatars.opened(base, 'train')[0],
      batch_size=c.rollouts.prompts,
      seed=c.seed,
      transform=prompted(words),
      transform_name=f'{words.fingerprint} prompted',
      cache=True,
    ),
    frozen={'judge': judge_params, **(later(c.base, stage.objective, stage.data.spec) if c.kl else {})},
    init_from=InitFrom(c.base),
    **run_options(c),
  )
