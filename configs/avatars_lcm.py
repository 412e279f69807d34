"""LCM on avatars: a model of text makes images in four steps without guidance; or LCM-LoRA, a small file that does it.

  jaxgen train --config avatars                                            # the teacher
  jaxgen train --config avatars_lcm --config.base=runs/avatars
  jaxgen train --config avatars_lcm --config.base=runs/avatars --config.lora.rank=16

attributes_test and fid_256 are those of avatars, whose teacher has 0.70 and 122 in 16 steps.

Result, seed 0, one busy core: four steps of the teacher itself, unguided, give 0.697 of test (96 prompts), which 60
steps of training at 5e-5 bring down to 0.631, and at 5e-4 to 0.190. A whole run, and FID: not run yet.
"""

from typing import Any

import optax
from ml_collections import ConfigDict

from configs import avatars
from jaxgen import ema
from jaxgen.adapters import lora
from jaxgen.config_parts import run_options, warmup_cosine
from jaxgen.experiment import Experiment
from jaxgen.init_from import InitFrom, later
from jaxgen.objectives.adapted import adapted
from jaxgen.objectives.few_step.latent_consistency import latent_consistency
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.guidance import classifier_free
from jaxgen.text_parts import avatars_evaluators


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'base': 'runs/avatars',  # the run of avatars that is distilled
      'dataset': 'avatars32',
      'times': (1.0, 0.75, 0.5, 0.25),  # times at which the student is called
      'grid': 50,  # number of times in training
      'steps': 200,
      'batch_size': 32,
      'scale': 2.0,  # scale of the teacher's guidance
      'lora': {'rank': 0, 'on': ('blocks/',)},  # rank 0 for the whole network
      'rate': 5e-5,
      'ema': 0.95,
      'clip_norm': 1.0,
      'sampling': {'batch_size': 64},
      'samples': {'every': 200, 'prompts': 8, 'per_prompt': 8},
      'fid': {'every': 200, 'num_samples': 256, 'batch_size': 16},
      'attributes': {'every': 100, 'number': 128},
      'evaluate_first': False,
      'log_every': 20,
      'checkpoint': {'every': 100, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  base = avatars.of_run(c.base)
  base.update({'dataset': c.dataset, 'batch_size': c.batch_size})
  stage = avatars.build(base)
  tokenize: Any = stage.tokenize
  whole = latent_consistency(
    stage.objective,
    grid=c.grid,
    times=tuple(c.times),
    guide_teacher=(classifier_free(c.scale), clip()),
    guide=(clip(),),
  )
  objective = adapted(whole, lora.lora(lora.LoRA(c.lora.rank, on=tuple(c.lora.on)))) if c.lora.rank else whole
  name = lora.NAME if c.lora.rank else 'net'
  return stage._replace(
    objective=objective,
    optimizers={name: optax.adam(warmup_cosine(c.rate, warmup=20, steps=c.steps), b2=0.95)},
    learning_rates={},
    averages={name: ema.Average(name, ema.warmup(c.ema))},
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
    init_from=None if c.lora.rank else InitFrom(c.base, unused=('^text/',)),
    **run_options(c),
  )
