"""emoji_one_step, whose student then goes on against StyleGAN2's discriminator: one step, sharper than its teacher's.

  jaxgen weights get lpips                                    # once
  ./launch/local train --config emoji_adversarial

Adversarial post-training, Lin et al. 2025. The same hardware as emoji_dit. Result: not run yet.
"""

import math
from functools import partial

import flax.linen as nn
import optax
from ml_collections import ConfigDict

from configs import emoji_dit, emoji_one_step
from jaxgen import ema
from jaxgen.experiment import Experiment
from jaxgen.models.stylegan2 import StyleGAN2Discriminator
from jaxgen.objectives import gan_losses
from jaxgen.objectives.adversarial import OneStep, as_generator
from jaxgen.objectives.augmentation import adaptive, no_augmentation
from jaxgen.objectives.augmentation_pipeline import Pipeline
from jaxgen.objectives.base import Objective
from jaxgen.objectives.gan import gan
from jaxgen.objectives.regularizers import r1
from jaxgen.optimizers import lazy_adam
from jaxgen.processes import parameterisation


def learn(c: ConfigDict, net: nn.Module, *, shape: tuple[int, ...], null: dict[str, int]) -> Objective:
  process, d = emoji_dit.PROCESSES[c.process][0], c.adversary
  return gan(
    OneStep(net, process, parameterisation.x0(process, margin=c.margin), shape),
    StyleGAN2Discriminator(null['label'], base=d.base, max_features=d.max_features, group=d.group),
    latent=math.prod(shape),
    loss=gan_losses.non_saturating,
    discriminator_penalties=(r1(**d.r1),),
    cond=('label',),
    augmentation=adaptive(Pipeline(), **d.ada) if d.ada.ramp else no_augmentation,
  )


def build(c: ConfigDict) -> tuple[Experiment, ...]:
  d = c.adversary
  against = ConfigDict(c.to_dict() | {'steps': d.train_steps, 'batch_size': d.batch_size})
  against.sampling.update(name='DDIM', steps=1, scale=1.0)
  adam = partial(optax.adam, optax.linear_schedule(0.0, d.generator.rate, d.generator.warmup))
  last = emoji_dit.build(against, learn=learn)._replace(
    optimizers={
      'generator': adam(b1=d.b1, b2=d.b2),
      'discriminator': lazy_adam(d.discriminator, b1=d.b1, b2=d.b2, every=d.r1.every),
    },
    averages={'generator': ema.Average('generator', ema.warmup(d.ema))},
    clip_norm=None,
    begin=as_generator,
  )
  return *emoji_one_step.build(c), last


def get_config() -> ConfigDict:
  c = emoji_one_step.get_config()
  c.adversary = ConfigDict(
    {
      'train_steps': 2400,
      'batch_size': 16,
      'base': 256,
      'max_features': 128,
      'group': 4,  # images whose standard deviation the discriminator is told
      'r1': {'gamma': 0.1, 'every': 16},
      'ada': {'target': 0.6, 'ramp': 0.0},  # ramp: images from 0 to 1, such as 50,000; 0 for none
      'generator': {'rate': 2e-4, 'warmup': 100},
      'discriminator': 0.005,  # learning rate
      'b1': 0.0,
      'b2': 0.99,
      'ema': 0.998,
    }
  )
  return c
