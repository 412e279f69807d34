"""emoji_dit, then a student that draws in one step what its sampler draws in twelve, guidance included.

  jaxgen weights get lpips                                    # once
  ./launch/local train --config emoji_one_step

Luhman & Luhman 2021: the student is trained on pairs of a noise and the teacher's image, here by LPIPS and squared
error. The same hardware as emoji_dit. Result, seed 0, after a teacher of 1,500 steps (fid_256 172.4 in its 12 steps,
178.7 in 10 of DDIM, 193.0 in 5), on one core beside other programs: one step 201.8 after 150 steps of training, 190.5
after 300, 186.5 after 600. Straight from noise, faces and signs are whole.
"""

from functools import partial

import flax.linen as nn
from ml_collections import ConfigDict

from configs import emoji_dit
from jaxgen.experiment import Experiment, chosen
from jaxgen.metrics import lpips
from jaxgen.objectives import distances
from jaxgen.objectives.base import Objective
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.few_step.distillation import of_last_stage, paired
from jaxgen.processes import parameterisation, times
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler

ONE = grids.uniform(1)


def learn(c: ConfigDict, net: nn.Module, *, shape: tuple[int, ...], num_classes: int, teacher: ConfigDict) -> Objective:
  process, s = emoji_dit.PROCESSES[c.process][0], c.student
  sampler = chosen(emoji_dit.SAMPLERS, teacher.name, field='sampling.name')
  return paired(
    net,
    process,
    shape=shape,
    parameterisation=partial(parameterisation.x0, margin=c.margin),
    times=times.discrete(1),
    sampler=Sampler(ddim, ONE),
    teacher=Sampler(sampler, grids.uniform(teacher.steps)),
    pool=s.pool,
    fresh=s.fresh,
    distance=distances.perceptual(s.judge, side=s.side),
    conditioner=labels(num_classes),
    guide=(clip(),),
    guide_teacher=(classifier_free(teacher.scale), clip()),
  )


def build(c: ConfigDict) -> tuple[Experiment, ...]:
  of_student = ConfigDict(c.to_dict() | {'steps': c.student.train_steps})
  of_student.sampling.update(name='DDIM', steps=1, scale=1.0)
  of_student.optimizer.update(muon=c.student.muon, adam=c.student.adam)
  student = emoji_dit.build(of_student, learn=partial(learn, teacher=c.sampling))
  return emoji_dit.build(c), student._replace(begin=of_last_stage, frozen={'lpips': lpips.load().params})


def get_config() -> ConfigDict:
  c = emoji_dit.get_config()
  c.student = ConfigDict(
    {
      'train_steps': 600,
      'pool': 4096,
      'fresh': 8,
      'judge': 'alexnet',  # LPIPS's network, and the side of what it sees
      'side': 64,
      'muon': 0.01,
      'adam': 1e-3,
    }
  )
  return c
