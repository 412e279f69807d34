"""emoji_dit, then a student that samples in one step as its sampler does in twelve, guidance included.

  jaxgen weights get lpips                                    # once
  ./launch/local train --config emoji_one_step

Luhman & Luhman 2021: the student is trained on pairs of a noise and the teacher's image, here by LPIPS and squared
error. The same hardware as emoji_dit. Result, seed 0, after a teacher of 1,500 steps (fid_256 172.4 in its 12 steps,
178.7 in 10 of DDIM, 193.0 in 5), on one core beside other programs: one step 201.8 after 150 steps of training, 190.5
after 300, 186.5 after 600. Straight from noise, faces and signs are whole.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import emoji_dit
from jaxgen.config_parts import PROCESSES, SAMPLERS, image_experiment, muon_and_adam
from jaxgen.experiment import Experiment, chosen
from jaxgen.models.dit import DiT
from jaxgen.objectives import distances
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.few_step.distillation import of_last_stage, paired
from jaxgen.pretrained import lpips
from jaxgen.processes import parameterisation, times
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  c = emoji_dit.get_config()
  c.student = ConfigDict(
    {
      'train_steps': 600,
      'pool': 4096,
      'fresh': 8,
      'judge': 'alexnet',  # LPIPS's network, and the side of its inputs
      'side': 64,
      'muon': 0.01,
      'adam': 1e-3,
    }
  )
  return c


def build(c: ConfigDict) -> tuple[Experiment, ...]:
  teacher = emoji_dit.build(c)
  return teacher, student(c, teacher)


def student(c: ConfigDict, teacher: Experiment) -> Experiment:
  data, s = teacher.data, c.student
  num_classes = data.dataset.num_classes
  objective = paired(
    DiT(num_classes=num_classes, **c.model),
    chosen(PROCESSES, c.process, field='process')[0],
    shape=data.spec['image'].shape[1:],
    parameterisation=partial(parameterisation.x0, margin=c.margin),
    times=times.discrete(1),
    sampler=Sampler(ddim, grids.uniform(1)),
    teacher=Sampler(chosen(SAMPLERS, c.sampling.name, field='sampling.name'), grids.uniform(c.sampling.steps)),
    pool=s.pool,
    fresh=s.fresh,
    distance=distances.perceptual(s.judge, side=s.side),
    conditioner=labels(num_classes),
    guide=(clip(),),
    guide_teacher=(classifier_free(c.sampling.scale), clip()),
  )
  changed = ConfigDict(c.to_dict())
  changed.steps = s.train_steps
  changed.sampling.update(name='DDIM', steps=1, scale=1.0)
  changed.held_out.every = 0  # a student of one step is no denoiser of noisy pictures
  changed.optimizer.update(muon=s.muon, adam=s.adam)
  optimizers = {'net': muon_and_adam(changed.optimizer, steps=changed.steps)}
  stage = image_experiment(changed, objective, data, optimizers=optimizers)
  return stage._replace(begin=of_last_stage, frozen={'lpips': lpips.load().params})
