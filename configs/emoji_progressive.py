"""emoji_dit, then students of 8, 4, 2 and 1 DDIM steps, each of the one before: progressive distillation in stages.

  ./launch/local train --config emoji_progressive

The same hardware as emoji_dit, and about half as long again for the students. Result, seed 0, after a teacher of 1,500
steps (fid_256 171.7 in 20 steps of DPM-Solver++, 178.7 in 10 and 193.0 in 5 of DDIM): 8 steps 183.2, 4 steps 190.3,
2 steps 197.1, one step 217.3.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import emoji_dit
from jaxgen.config_parts import image_experiment, muon_and_adam
from jaxgen.experiment import Experiment
from jaxgen.models.dit import DiT
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.few_step.distillation import of_last_stage, progressive
from jaxgen.processes import parameterisation, weighting
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers.guidance import classifier_free


def get_config() -> ConfigDict:
  c = emoji_dit.get_config()
  c.students = ConfigDict({'steps': (8, 4, 2, 1), 'train_steps': 100, 'muon': 0.005, 'adam': 5e-4})
  return c


def build(c: ConfigDict) -> tuple[Experiment, ...]:
  teacher = emoji_dit.build(c)
  first, *others = c.students.steps  # the first student learns the guidance, too
  return (
    teacher,
    student(c, teacher, steps=first, teacher_scale=c.sampling.scale),
    *(student(c, teacher, steps=steps, teacher_scale=1.0) for steps in others),
  )


def student(c: ConfigDict, teacher: Experiment, *, steps: int, teacher_scale: float) -> Experiment:
  data = teacher.data
  num_classes = data.dataset.num_classes
  objective = progressive(
    DiT(num_classes=num_classes, **c.model),
    vp_cosine(),
    shape=data.spec['image'].shape[1:],
    steps=steps,
    parameterisation=partial(parameterisation.x0, margin=c.margin),
    weighting=weighting.truncated_snr,
    conditioner=labels(num_classes),
    guide_teacher=(classifier_free(teacher_scale),),
  )
  changed = ConfigDict(c.to_dict())
  changed.steps = c.students.train_steps
  changed.sampling.update(name='DDIM', steps=steps, scale=1.0)
  changed.held_out.every = 0  # a student of few steps is no denoiser of noisy pictures
  changed.optimizer.update(muon=c.students.muon, adam=c.students.adam)
  optimizers = {'net': muon_and_adam(changed.optimizer, steps=changed.steps)}
  return image_experiment(changed, objective, data, optimizers=optimizers)._replace(begin=of_last_stage)
