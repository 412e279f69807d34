"""emoji_one_step, whose student is then trained against a discriminator: one step, with the data as its teacher.

  jaxgen weights get lpips                                    # once
  ./launch/local train --config emoji_adversarial --config.steps=1500

Adversarial post-training (Lin et al. 2025) by a discriminator that sees AlexNet's features (Sauer et al. 2021). The
same hardware as emoji_dit. Result, seed 0, after a teacher of 1,500 steps (fid_256 172.4 in its 12 steps, 171.6 in 250
of DDIM): one step 186.9 after the pairs, 154.5 after 1,200 steps against the discriminator, 23 minutes of one core
beside other programs; fuller colours, clean faces and signs. FID favours a discriminator that knows ImageNet, as
Inception does (Kynkaanniemi et al. 2023).
"""

import math
from functools import partial

import optax
from ml_collections import ConfigDict

from jaxgen import ema
from jaxgen.config_parts import PROCESSES, SAMPLERS, image_experiment, loader, muon_and_adam
from jaxgen.data.loader import Loader
from jaxgen.data.sources import source
from jaxgen.experiment import Experiment, chosen
from jaxgen.models.dit import DiT
from jaxgen.models.projected import ProjectedDiscriminator
from jaxgen.objectives import distances
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.few_step.distillation import of_last_stage, paired
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.adversarial import OneStep, as_generator, perceptual_backbone
from jaxgen.objectives.gan.augmentation import diff_augment
from jaxgen.objectives.gan.gan import gan
from jaxgen.pretrained import lpips
from jaxgen.processes import parameterisation, times
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'emoji32',  # or folder:PATH, ...: jaxgen/data/sources.py
      'resolution': 0,  # side of the images; 0 for images as they are
      'reference': 'train',  # the split that FID compares with
      'flip': False,
      'process': 'cosine',
      'steps': 1200,
      'batch_size': 32,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'patch': 4, 'depth': 5, 'width': 128, 'heads': 2},
      'margin': 0.05,  # times nearer to 0 than this count as this one where x0 is turned into v: JiT, Li & He 2025
      'drop_rate': 0.1,
      'optimizer': {'muon': 0.02, 'adam': 2e-3, 'b2': 0.95, 'warmup': 20},  # learning rates: of matrices, of the rest
      'ema': 0.99,
      'clip_norm': 1.0,
      'sampling': {'name': 'DPM-Solver++ 2M', 'steps': 12, 'scale': 3.0, 'batch_size': 64},
      'evaluate_first': True,
      'samples': {'every': 300, 'per_class': 8},
      'fid': {'every': 600, 'num_samples': 256, 'batch_size': 16},  # num_samples=0 for none
      'held_out': {'every': 300, 'num': 256, 'batch_size': 64},  # the loss on the test split, if there is one
      'student': {
        'train_steps': 600,
        'pool': 4096,
        'fresh': 8,
        'judge': 'alexnet',  # LPIPS's network, and the side of its inputs
        'side': 64,
        'muon': 0.01,
        'adam': 1e-3,
      },
      'adversary': {
        'train_steps': 1200,
        'batch_size': 32,
        'width': 64,
        'judge': 'alexnet',  # the discriminator's backbone, and the side of its inputs
        'side': 64,
        'generator': 5e-5,  # learning rates
        'warmup': 100,  # steps over which the generator's rate rises from 0
        'discriminator': 1e-3,
        'b1': 0.0,
        'b2': 0.99,
        'ema': 0.995,
      },
      'log_every': 50,
      'checkpoint': {'every': 300, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> tuple[Experiment, ...]:
  data = loader(c, source(c.dataset, resolution=c.resolution))
  return teacher(c, data), student(c, data), adversarial(c)


def teacher(c: ConfigDict, data: Loader) -> Experiment:
  """emoji_dit."""
  num_classes = data.dataset.num_classes
  process, loss_in, time_sampler = chosen(PROCESSES, c.process, field='process')
  solve = chosen(SAMPLERS, c.sampling.name, field='sampling.name')
  objective = diffusion(
    DiT(num_classes=num_classes, **c.model),
    process,
    shape=data.spec['image'].shape[1:],
    parameterisation=partial(parameterisation.x0, margin=c.margin),
    loss_in=loss_in,
    times=time_sampler,
    sampler=Sampler(solve, grids.uniform(c.sampling.steps)),
    guide=(classifier_free(c.sampling.scale), clip()),
    conditioner=labels(num_classes, drop_rate=c.drop_rate),
  )
  return image_experiment(c, objective, data, optimizers={'net': muon_and_adam(c.optimizer, steps=c.steps)})


def student(c: ConfigDict, data: Loader) -> Experiment:
  """A network of one step, trained on pairs of a noise and the teacher's image, as in emoji_one_step."""
  s, num_classes = c.student, data.dataset.num_classes
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
  changed = one_step(c)
  changed.steps = s.train_steps
  changed.optimizer.update(muon=s.muon, adam=s.adam)
  optimizers = {'net': muon_and_adam(changed.optimizer, steps=changed.steps)}
  stage = image_experiment(changed, objective, data, optimizers=optimizers)
  return stage._replace(begin=of_last_stage, frozen={'lpips': lpips.load().params})


def adversarial(c: ConfigDict) -> Experiment:
  """The student as the generator of a GAN."""
  d = c.adversary
  changed = one_step(c)
  changed.steps, changed.batch_size = d.train_steps, d.batch_size
  data = loader(changed, source(c.dataset, resolution=c.resolution))
  shape, num_classes = data.spec['image'].shape[1:], data.dataset.num_classes
  process, *_ = chosen(PROCESSES, c.process, field='process')
  net = DiT(num_classes=num_classes, **c.model)
  objective = gan(
    OneStep(net, process, partial(parameterisation.x0, margin=c.margin), shape),
    ProjectedDiscriminator(d.width, num_classes=num_classes),
    latent=math.prod(shape),
    loss=gan_losses.hinge,
    augmentation=diff_augment(),
    backbone=perceptual_backbone(d.judge, side=d.side),
    cond=('label',),
  )
  optimizers = {
    'generator': optax.adam(optax.linear_schedule(0.0, d.generator, d.warmup), b1=d.b1, b2=d.b2),
    'discriminator': optax.adam(d.discriminator, b1=d.b1, b2=d.b2),
  }
  return image_experiment(changed, objective, data, optimizers=optimizers)._replace(
    averages={'generator': ema.Average('generator', ema.warmup(d.ema))},
    frozen={'lpips': lpips.load().params},
    clip_norm=None,
    begin=as_generator,
  )


def one_step(c: ConfigDict) -> ConfigDict:
  """The config of a stage that is sampled in one step."""
  changed = ConfigDict(c.to_dict())
  changed.sampling.update(name='DDIM', steps=1, scale=1.0)
  changed.held_out.every = 0  # a student of one step is no denoiser of noisy pictures
  return changed
