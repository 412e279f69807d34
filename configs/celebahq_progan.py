"""ProGAN on CelebA-HQ, grown from 4x4 to 256x256 in seven stages (Karras et al. 2018).

  for size in 4 8 16 32 64 128 256: jaxgen data prepare image_folder --source CELEBAHQ --size SIZE --name celebahq
  jaxgen train --config celebahq_progan

Each stage fades its size in over 600,000 images and stays for as many more; Wasserstein loss with a gradient penalty
of 10 and drift, Adam at 1e-3 with b1 0 and b2 0.99. For eight GPUs or TPU chips. Result: not run yet.
"""

from functools import partial

import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import emoji_dcgan, emoji_stylegan2
from configs.ffhq256_stylegan2 import opened
from jaxgen.experiment import Experiment
from jaxgen.models.progan import ProGANDiscriminator, ProGANGenerator
from jaxgen.objectives.base import Objective
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.gan import gan
from jaxgen.objectives.gan.regularizers import drift, gradient_penalty


def get_config() -> ConfigDict:
  c = emoji_stylegan2.get_config()
  del c.group, c.r1, c.path_length, c.ada  # StyleGAN2's
  c.dataset, c.data_dir, c.flip = 'celebahq', '', True
  c.resolutions = (4, 8, 16, 32, 64, 128, 256)
  c.batch_sizes = (64, 64, 64, 64, 64, 32, 16)
  c.images = 1_200_000  # of each stage
  c.fade = 600_000  # of these, at the start of each stage but the first
  c.model = ConfigDict({'latent': 512, 'base': 8192, 'max_features': 512})
  c.penalty = 10.0
  c.optimizer = ConfigDict({'rate': 1e-3, 'b1': 0.0, 'b2': 0.99})
  c.ema = ConfigDict({'images': 10_000.0, 'ramp': None})
  c.samples.every = c.checkpoint.every = 10_000
  c.fid = ConfigDict({'every': 50_000, 'num_samples': 50_000, 'batch_size': 64})
  return c


def progan(c: ConfigDict, *, channels: int, num_classes: int, begin: int, fade_steps: int) -> Objective:
  sizes = {'base': c.model.base, 'max_features': c.model.max_features, 'dtype': c.dtype}
  return gan(
    ProGANGenerator(c.resolution, channels, **sizes),
    ProGANDiscriminator(fades=c.resolution > c.resolutions[0], **sizes),
    latent=c.model.latent,
    loss=gan_losses.wasserstein,
    discriminator_penalties=(gradient_penalty(c.penalty), drift()),
    scheduled=lambda step: {'fade': jnp.clip((step - begin) / fade_steps, 0.0, 1.0).astype(jnp.float32)},
  )


def build(c: ConfigDict) -> tuple[Experiment, ...]:
  stages, begin = [], 0
  for resolution, batch_size in zip(c.resolutions, c.batch_sizes, strict=True):
    stage = ConfigDict(c.to_dict())
    stage.resolution, stage.batch_size, stage.steps = resolution, batch_size, c.images // batch_size
    stage.fid.num_samples = c.fid.num_samples if resolution == c.resolutions[-1] else 0
    learn = partial(progan, begin=begin, fade_steps=max(c.fade // batch_size, 1))
    stages.append(emoji_stylegan2.build(stage, learn=learn, optimizers=emoji_dcgan.adams, opened=opened))
    begin += stage.steps
  return tuple(stages)
