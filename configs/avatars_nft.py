"""DiffusionNFT on avatars: a trained model learns from its own samples which of them show what the prompt asks for.

  jaxgen train --config avatars                                            # the base
  jaxgen train --config avatars_nft --config.base=runs/avatars

Each step samples a few groups of images with guidance in eight steps, and the classifier of attributes that comes with
jaxgen says how much of the prompt they show. That is also what attributes_test measures, of prompts of other pairs of
words; fid_256 beside it says what the reward does not see.

Result, seed 0, 45 of 90 steps on one busy core, 1,440 samples: attributes_test 0.698 to 0.704, attributes_seen 0.707 to
0.712, within noise; the reward of its own samples 0.695 to 0.735. A whole run, and FID: not run yet.
"""

from functools import partial
from typing import Any

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
from jaxgen.objectives.base import sampled
from jaxgen.objectives.preference import rewards
from jaxgen.objectives.preference.nft import nft
from jaxgen.objectives.preference.rollouts import Rollouts
from jaxgen.pretrained import attribute_classifier
from jaxgen.processes import times
from jaxgen.samplers import grids
from jaxgen.samplers.dpm_solver import dpm_multistep
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'base': 'runs/avatars',  # run of avatars whose model is trained further
      'dataset': 'avatars32',  # dataset whose prompts are used
      'steps': 100,
      'batch_size': 64,  # images that a step learns from
      'rollouts': {'prompts': 4, 'group': 8, 'steps': 8},  # new images of a step, and of their sampler
      'pool': 256,  # images that are kept
      'beta': 1.0,
      'kl': 0.0,
      'old': 0.9,  # decay of the average that samples
      'optimizer': {'rate': 2e-4, 'b2': 0.95, 'warmup': 5},
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
  base.update({'dataset': c.dataset, 'batch_size': c.batch_size})
  for name in ('samples', 'fid', 'attributes'):
    base[name].update(c[name])
  stage, words = avatars.build(base), avatars.vocabulary(*avatars.opened(base, 'train'))
  learned, (judge, judge_params) = stage.objective, attribute_classifier.read()
  denoising: Any = learned.denoising
  grid = np.asarray(times.shift(grids.uniform(c.rollouts.steps), base.sampling.shift))
  quick = sampled(denoising._replace(sampler=Sampler(dpm_multistep, grid)))
  objective = nft(
    learned,
    times=times.shifted(times.uniform(draw=times.stratified), base.shift),
    rollouts=Rollouts(
      quick, rewards.attributes(judge, attribute_classifier.SIZES), c.rollouts.prompts, c.rollouts.group
    ),
    pool=c.pool,
    old={'net': 'old_net', 'text': 'old_text'},
    beta=c.beta,
    kl=c.kl,
  )
  adam = partial(optax.adam, warmup_cosine(c.optimizer.rate, warmup=c.optimizer.warmup, steps=c.steps))
  old = ema.constant(c.old)
  return stage._replace(
    objective=objective,
    optimizers={name: adam(b2=c.optimizer.b2) for name in ('net', 'text')},
    learning_rates={},
    averages={
      **{name: ema.Average(name, ema.warmup(c.ema)) for name in ('net', 'text')},
      **{f'old_{name}': ema.Average(name, old) for name in ('net', 'text')},
    },
    data=Loader(
      avatars.opened(base, 'train')[0],
      batch_size=c.batch_size,
      seed=c.seed,
      transform=prompted(words),
      transform_name=f'{words.fingerprint} prompted',
      cache=True,
    ),
    frozen={'judge': judge_params, **(later(c.base, learned, stage.data.spec) if c.kl else {})},
    init_from=InitFrom(c.base),
    **run_options(c),
  )
