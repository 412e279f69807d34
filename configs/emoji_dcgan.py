"""emoji_stylegan2's data with a DCGAN: batch norms, Adam at 2e-4, no regulariser.

  ./launch/local train --config emoji_dcgan

The generator is sampled with its running statistics, which are of the parameters themselves, so there is no average.

Result, seed 0, 20 minutes on one core with another program on the other: 901 steps; `fid_1k` 253.5 with 5,000 of the
training images; colours and places of the classes, no shapes, a checkerboard.
"""

from functools import partial

import optax
from ml_collections import ConfigDict

from configs import emoji_stylegan2
from jaxgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
from jaxgen.objectives.base import Objective
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.augmentation import diff_augment, no_augmentation
from jaxgen.objectives.gan.gan import gan


def get_config() -> ConfigDict:
  c = emoji_stylegan2.get_config()
  del c.group, c.r1, c.path_length, c.ada  # StyleGAN2's
  c.model = ConfigDict({'width': 32, 'latent': 100})
  c.batch_size = 64
  c.steps = 900
  c.samples.every = c.fid.every = c.checkpoint.every = 300
  c.diff_augment = False
  c.optimizer = ConfigDict({'rate': 2e-4, 'b1': 0.5, 'b2': 0.999})
  c.ema.images = 0.0
  return c


def dcgan(c: ConfigDict, *, channels: int, num_classes: int) -> Objective:
  return gan(
    DCGANGenerator(c.resolution, channels, c.model.width, num_classes, dtype=c.dtype),
    DCGANDiscriminator(c.model.width, num_classes, dtype=c.dtype),
    latent=c.model.latent,
    loss=gan_losses.non_saturating,
    augmentation=diff_augment() if c.diff_augment else no_augmentation,
    cond=('label',) if num_classes else (),
  )


def adams(c: ConfigDict) -> dict[str, optax.GradientTransformation]:
  adam = optax.adam(c.optimizer.rate, b1=c.optimizer.b1, b2=c.optimizer.b2)
  return {'generator': adam, 'discriminator': adam}


build = partial(emoji_stylegan2.build, learn=dcgan, optimizers=adams)
