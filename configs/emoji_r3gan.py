"""emoji_stylegan2's data with an R3GAN: a relativistic loss with R1 and R2 at every step, plain residual networks.

  ./launch/local train --config emoji_r3gan

As in the paper, learning rate, gamma, b2, and the augmentation's probability follow cosines from their first to their
last value over the first part of training.

Result, seed 0, 20 minutes on one core with another program on the other: 1,575 steps; `fid_1k` 154.1 with 5,000 of the
training images; smooth signs, rings and lettered squares with outlines, nothing fine.
"""

from functools import partial

import optax
from ml_collections import ConfigDict

from jaxgen.config_parts import burn_in_cosine, gan_experiment, loader
from jaxgen.data.sources import source
from jaxgen.experiment import Experiment
from jaxgen.models.r3gan import R3GANDiscriminator, R3GANGenerator
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.augmentation import no_augmentation, scheduled
from jaxgen.objectives.gan.augmentation_pipeline import Pipeline
from jaxgen.objectives.gan.gan import gan
from jaxgen.objectives.gan.regularizers import r1, r2

# The paper's augmentations: geometry at full strength, colours at half, cutout.
PIPELINE = Pipeline(brightness=0.5, contrast=0.5, luma_flip=0.5, hue=0.5, saturation=0.5, cutout=1.0)


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'emoji64',
      'resolution': 64,
      'reference': 'train',  # the split that FID compares with
      'flip': False,
      'steps': 1600,
      'batch_size': 16,
      'burn_in': 30_000.0,  # images over which the values go from the first to the last
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'widths': (64, 64, 32, 16, 8), 'blocks': 1, 'group': 16, 'latent': 64},
      'dtype': 'float32',
      'gamma': (1.0, 0.1),
      'augmentation': (0.0, 0.0),  # probability, such as (0.0, 0.5); (0.0, 0.0) for none
      'optimizer': {'rate': (2e-3, 5e-4), 'b1': 0.0, 'b2': (0.9, 0.99)},
      'ema': {'images': 5_000.0, 'ramp': 0.05},  # half-life; 0 for no average
      'sampling': {'batch_size': 64},
      'samples': {'every': 600, 'num': 56},
      'fid': {'every': 1200, 'num_samples': 256, 'batch_size': 16},  # num_samples=0 for none
      'log_every': 50,
      'checkpoint': {'every': 600, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  opened = partial(source, c.dataset, resolution=c.resolution)
  data = loader(c, opened())
  num_classes, channels = data.dataset.num_classes, data.spec['image'].shape[-1]
  cosine = partial(burn_in_cosine, images=c.burn_in, batch_size=c.batch_size)
  m, gamma = c.model, cosine(*c.gamma)
  objective = gan(
    R3GANGenerator(m.widths, m.blocks, m.group, channels, num_classes, c.dtype),
    R3GANDiscriminator(m.widths[::-1], m.blocks, m.group, num_classes, c.dtype),
    latent=m.latent,
    loss=gan_losses.relativistic,
    discriminator_penalties=(r1(gamma), r2(gamma)),
    augmentation=scheduled(PIPELINE, cosine(*c.augmentation)) if any(c.augmentation) else no_augmentation,
    cond=('label',) if num_classes else (),
  )
  o = c.optimizer
  adam = optax.inject_hyperparams(optax.adam)(cosine(*o.rate), b1=o.b1, b2=cosine(*o.b2))
  optimizers = {'generator': adam, 'discriminator': adam}
  return gan_experiment(c, objective, data, optimizers=optimizers, reference=lambda: opened(c.reference))
