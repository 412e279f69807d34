"""DMD2 on avatars: a model of text whose sampler takes 16 guided steps becomes one of two steps without guidance.

  jaxgen train --config avatars                                            # the teacher
  jaxgen train --config avatars_dmd --config.base=runs/avatars
  jaxgen train --config avatars_dmd --config.base=runs/avatars --config.times='(1.0,)'     # one step

attributes_test and fid_256 are those of avatars, whose teacher has 0.70 and 122 in 16 steps.

Result: not run yet.
"""

from typing import Any

import optax
from ml_collections import ConfigDict

from configs import avatars
from jaxgen import ema
from jaxgen.config_parts import run_options
from jaxgen.experiment import Experiment
from jaxgen.init_from import InitFrom, later
from jaxgen.objectives.few_step.dmd import FAKE, HEAD, dmd
from jaxgen.processes import parameterisation, times
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.guidance import classifier_free
from jaxgen.text_parts import avatars_evaluators


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'base': 'runs/avatars',  # the run of avatars that is distilled
      'dataset': 'avatars32',
      'times': (1.0, 0.75),  # times at which the student is called
      'steps': 100,
      'batch_size': 32,
      'every': 2,  # updates of the fake model for one of the student
      'scale': 2.0,  # scale of the teacher's guidance
      'shift': 1.0,  # shift of the noise's times towards noise
      'adversary': 0.03,  # weight of the adversary; 0 for none
      'depth': 2,  # block whose tokens it sees
      'rate': {'net': 5e-4, 'fake': 1e-3, 'head': 1e-2},
      'ema': 0.9,
      'clip_norm': 1.0,
      'sampling': {'batch_size': 64},
      'samples': {'every': 100, 'prompts': 8, 'per_prompt': 8},
      'fid': {'every': 100, 'num_samples': 256, 'batch_size': 16},
      'attributes': {'every': 50, 'number': 128},
      'evaluate_first': False,
      'log_every': 10,
      'checkpoint': {'every': 50, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  base = avatars.of_run(c.base)
  base.update({'dataset': c.dataset, 'batch_size': c.batch_size})
  stage = avatars.build(base)
  tokenize: Any = stage.tokenize
  objective = dmd(
    stage.objective,
    noise_times=times.shifted(lambda key, b: 0.02 + 0.96 * times.stratified(key, b), c.shift),
    times=tuple(c.times),
    every=c.every,
    guide_teacher=(classifier_free(c.scale), clip()),
    guide=(clip(),),
    space=parameterisation.v,
    adversary=c.adversary,
    depth=c.depth,
  )
  trained = ('net', FAKE, HEAD) if c.adversary else ('net', FAKE)
  return stage._replace(
    objective=objective,
    optimizers={name: optax.adam(c.rate[name], b1=0.0, b2=0.95) for name in trained},
    learning_rates={},
    averages={'net': ema.Average('net', ema.warmup(c.ema))},
    frozen=later(c.base, stage.objective, stage.data.spec),
    evaluators=avatars_evaluators(
      c,
      objective,
      stage.data,
      mesh=stage.mesh,
      tokenize=tokenize,
      splits={split: avatars.opened(base, split)[0] for split in ('test', 'seen')},
      protocol={'sampler': f'consistency, {len(c.times)} steps, clipped to [-1, 1]', 'guidance': 1.0},
    ),
    init_from=InitFrom(c.base, fresh=(f'^{FAKE}/', f'^{HEAD}/'), unused=('^text/',)),
    **run_options(c),
  )
