"""Diffusion-DPO on avatars: a trained model learns from pairs of its own samples, the better one first.

  jaxgen train --config avatars                                            # the base
  jaxgen train --config avatars_dpo --config.base=runs/avatars
  jaxgen train --config avatars_dpo --config.preferences=preferences.jsonl # pairs that people chose: jaxgen vote export

Without preferences, each step samples a few groups of images from the frozen base, and the classifier of attributes
that comes with jaxgen picks the best and the worst of each. attributes_test measures by the same classifier, on prompts
of other pairs of words; fid_256 beside it says what the reward does not see.

Result: not run yet.
"""

from functools import partial
from typing import Any

import numpy as np
import optax
from ml_collections import ConfigDict

from configs import avatars
from jaxgen import ema
from jaxgen.config_parts import run_options, warmup_cosine
from jaxgen.data.captions import tokenized
from jaxgen.data.datasets.avatars_captions import prompted
from jaxgen.data.datasets.preferences import preferences
from jaxgen.data.loader import Loader
from jaxgen.experiment import Experiment
from jaxgen.init_from import InitFrom, later
from jaxgen.objectives.base import sampled
from jaxgen.objectives.preference import rewards
from jaxgen.objectives.preference.dpo import dpo
from jaxgen.objectives.preference.rollouts import Rollouts
from jaxgen.pretrained import attribute_classifier
from jaxgen.processes import parameterisation, times
from jaxgen.samplers import grids
from jaxgen.samplers.dpm_solver import dpm_multistep
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'base': 'runs/avatars',  # run of avatars whose model is trained further
      'dataset': 'avatars32',  # dataset whose prompts are used
      'preferences': '',  # pairs that people chose, in place of the classifier's
      'steps': 100,
      'batch_size': 32,  # pairs
      'rollouts': {'prompts': 4, 'group': 8, 'steps': 8},  # new images of a step, and of their sampler
      'pool': 512,  # pairs that are kept
      'beta': 500.0,
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
  base.update({'dataset': c.dataset, 'batch_size': c.batch_size})
  for name in ('samples', 'fid', 'attributes'):
    base[name].update(c[name])
  stage, words = avatars.build(base), avatars.vocabulary(*avatars.opened(base, 'train'))
  learned = stage.objective
  frozen: dict[str, Any] = dict(later(c.base, learned, stage.data.spec))
  denoising: Any = learned.denoising
  if c.preferences:
    pairs, transform = preferences(c.preferences, size=denoising.shape[0]), tokenized(words)
    drawn: dict[str, Any] = {}
  else:
    pairs, transform = avatars.opened(base, 'train')[0], prompted(words)
    judge, frozen['judge'] = attribute_classifier.read()
    grid = np.asarray(times.shift(grids.uniform(c.rollouts.steps), base.sampling.shift))
    quick = sampled(denoising._replace(sampler=Sampler(dpm_multistep, grid)))
    reward = rewards.attributes(judge, attribute_classifier.SIZES)
    drawn = {'rollouts': Rollouts(quick, reward, c.rollouts.prompts, c.rollouts.group), 'pool': c.pool}
  adam = partial(optax.adam, warmup_cosine(c.optimizer.rate, warmup=c.optimizer.warmup, steps=c.steps))
  return stage._replace(
    objective=dpo(
      learned,
      times=times.shifted(times.uniform(draw=times.stratified), base.shift),
      beta=c.beta,
      space=parameterisation.v,
      **drawn,
    ),
    optimizers={name: adam(b2=c.optimizer.b2) for name in ('net', 'text')},
    learning_rates={},
    averages={name: ema.Average(name, ema.warmup(c.ema)) for name in ('net', 'text')},
    data=Loader(
      pairs,
      batch_size=c.batch_size,
      seed=c.seed,
      transform=transform,
      transform_name=f'{words.fingerprint} preferences',
      cache=True,
    ),
    frozen=frozen,
    init_from=InitFrom(c.base),
    **run_options(c),
  )
