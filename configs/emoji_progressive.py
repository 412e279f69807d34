"""emoji_dit, then students of 8, 4, 2 and 1 DDIM steps, each of the one before: progressive distillation in stages.

  ./launch/local train --config emoji_progressive

The same hardware as emoji_dit, and about half as long again for the students. Result, seed 0, after a teacher of 1,500
steps (fid_256 171.7 in 20 steps of DPM-Solver++, 178.7 in 10 and 193.0 in 5 of DDIM): 8 steps 183.2, 4 steps 190.3,
2 steps 197.1, one step 217.3.
"""

from functools import partial

import flax.linen as nn
from ml_collections import ConfigDict

from configs import emoji_dit
from jaxgen.experiment import Experiment
from jaxgen.objectives.base import Objective
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.few_step.distillation import of_last_stage, progressive
from jaxgen.processes import parameterisation, weighting
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers.guidance import classifier_free

PROCESS = vp_cosine()


def learn(
  c: ConfigDict, net: nn.Module, *, shape: tuple[int, ...], num_classes: int, steps: int, scale: float
) -> Objective:
  return progressive(
    net,
    PROCESS,
    shape=shape,
    steps=steps,
    parameterisation=partial(parameterisation.x0, margin=c.margin),
    weighting=weighting.truncated_snr,
    conditioner=labels(num_classes),
    guide_teacher=(classifier_free(scale),),
  )


def build(c: ConfigDict) -> tuple[Experiment, ...]:
  stages = [emoji_dit.build(c)]
  scale = c.sampling.scale  # the first student learns the guidance, too
  for steps in c.students.steps:
    of_student = ConfigDict(c.to_dict() | {'steps': c.students.train_steps})
    of_student.sampling.name, of_student.sampling.steps, of_student.sampling.scale = 'DDIM', steps, 1.0
    of_student.optimizer.muon, of_student.optimizer.adam = c.students.muon, c.students.adam
    stage = emoji_dit.build(of_student, learn=partial(learn, steps=steps, scale=scale))
    stages.append(stage._replace(begin=of_last_stage))
    scale = 1.0
  return tuple(stages)


def get_config() -> ConfigDict:
  c = emoji_dit.get_config()
  c.students = ConfigDict({'steps': (8, 4, 2, 1), 'train_steps': 100, 'muon': 0.005, 'adam': 5e-4})
  return c
