"""R3GAN on CIFAR-10 with labels, by the paper's recipe (Huang et al. 2024): FID 1.96 is published.

  jaxgen data prepare cifar10
  jaxgen train --config cifar10_r3gan

Batch 512, burn-in of 20 million images, half-life of the average 5 million; activations are bfloat16. For eight GPUs or
TPU chips. Result: not run yet.
"""

from functools import partial

import optax
from ml_collections import ConfigDict

from jaxgen.config_parts import burn_in_cosine, gan_experiment, loader, source_or_noise
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
      'dataset': 'cifar10',
      'data_dir': '',
      'resolution': 32,
      'reference': 'train',  # the split that FID compares with
      'flip': False,
      'steps': 200_000,
      'batch_size': 512,
      'burn_in': 2e7,  # images over which the values go from the first to the last
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'widths': (768, 768, 768, 768), 'blocks': 2, 'group': 16, 'latent': 64},
      'dtype': 'bfloat16',
      'gamma': (0.05, 0.005),
      'augmentation': (0.0, 0.55),  # probability; (0.0, 0.0) for none
      'optimizer': {'rate': (2e-4, 5e-5), 'b1': 0.0, 'b2': (0.9, 0.99)},
      'ema': {'images': 5e6, 'ramp': 0.05},  # half-life; 0 for no average
      'sampling': {'batch_size': 512},
      'samples': {'every': 5_000, 'num': 56},
      'fid': {'every': 5_000, 'num_samples': 50_000, 'batch_size': 512},  # num_samples=0 for none
      'log_every': 50,
      'checkpoint': {'every': 5_000, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  opened = partial(source_or_noise, c, num_classes=10)
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
