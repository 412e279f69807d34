"""A drifting model of one step on 25 Gaussians in a 5 x 5 grid: does it cover every mode?

  jaxgen train --config gaussians_drifting

Result, seed 0: 22 of 25 modes and 0.22 of the samples good after 3,000 steps (24 and 0.19 after 1,000), where GANs with
R1 cover all: the drift has one length at every step, so samples stay spread around the modes.
"""

from functools import partial

import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen import sharding
from jaxgen.checkpoint import Policy
from jaxgen.data.datasets.gaussians import STD, centres, gaussians25
from jaxgen.data.loader import Loader
from jaxgen.ema import Average, constant
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.modes import modes
from jaxgen.experiment import Experiment
from jaxgen.metrics.modes import nearest_mode
from jaxgen.models.mlp import MLPDenoiser
from jaxgen.objectives.few_step.drifting import drifting


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'steps': 3000,
      'batch_size': 256,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'width': 128, 'depth': 3},
      'bank': 512,
      'temperatures': (0.02, 0.05, 0.2),
      'rate': 1e-3,
      'ema': 0.99,
      'modes': {'num': 2500, 'every': 1000},
      'log_every': 500,
    }
  )


def build(c: ConfigDict) -> Experiment:
  mesh = sharding.make_mesh(**c.mesh)
  objective = drifting(MLPDenoiser(**c.model), shape=(1, 1, 2), bank=c.bank, temperatures=tuple(c.temperatures))
  generate = make_generate(objective.sample, mesh=mesh, batch_size=-(-c.modes.num // mesh.size) * mesh.size)
  nearest = partial(nearest_mode, centres=centres(), radius=4 * STD)
  return Experiment(
    objective=objective,
    optimizers={'net': optax.adam(optax.cosine_decay_schedule(c.rate, c.steps))},
    averages={'net': Average('net', constant(c.ema))},
    data=Loader(gaussians25('train'), batch_size=c.batch_size, seed=c.seed, cache=True),
    steps=c.steps,
    mesh=mesh,
    seed=c.seed,
    log_every=c.log_every,
    checkpoints=Policy(every=c.steps, keep=1),
    evaluators=(
      modes(
        generate,
        lambda context, images: nearest(np.reshape(images, (-1, 2))),
        mesh=mesh,
        num_modes=len(centres()),
        cond={},
        num=c.modes.num,
        every=c.modes.every,
      ),
    ),
  )
