"""ProGAN on CelebA-HQ, grown from 4x4 to 256x256 in seven stages (Karras et al. 2018).

  for size in 4 8 16 32 64 128 256: jaxgen data prepare image_folder --source CELEBAHQ --size SIZE --name celebahq
  jaxgen train --config celebahq_progan

Each stage fades its size in over 600,000 images and stays for as many more; Wasserstein loss with a gradient penalty
of 10 and drift, Adam at 1e-3 with b1 0 and b2 0.99. For eight GPUs or TPU chips. Result: not run yet.
"""

from functools import partial

import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxgen.config_parts import adams, gan_experiment, image_folder_or_noise, loader
from jaxgen.experiment import Experiment
from jaxgen.models.progan import ProGANDiscriminator, ProGANGenerator
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.gan import gan
from jaxgen.objectives.gan.regularizers import drift, gradient_penalty


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'celebahq',
      'data_dir': '',
      'reference': 'train',  # the split that FID compares with
      'flip': True,
      'resolutions': (4, 8, 16, 32, 64, 128, 256),
      'batch_sizes': (64, 64, 64, 64, 64, 32, 16),
      'images': 1_200_000,  # images of each stage
      'fade': 600_000,  # images of the fade at the start of each stage but the first
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'latent': 512, 'base': 8192, 'max_features': 512},
      'penalty': 10.0,
      'dtype': 'float32',
      'optimizer': {'rate': 1e-3, 'b1': 0.0, 'b2': 0.99},
      'ema': {'images': 10_000.0, 'ramp': None},  # half-life; 0 for no average
      'sampling': {'batch_size': 64},
      'samples': {'every': 10_000, 'num': 56},
      'fid': {'every': 50_000, 'num_samples': 50_000, 'batch_size': 64},  # num_samples=0 for none
      'log_every': 50,
      'checkpoint': {'every': 10_000, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> tuple[Experiment, ...]:
  stages, begin = [], 0
  for resolution, batch_size in zip(c.resolutions, c.batch_sizes, strict=True):
    of_stage = ConfigDict(c.to_dict())
    of_stage.update(resolution=resolution, batch_size=batch_size, steps=c.images // batch_size)
    if resolution != c.resolutions[-1]:
      of_stage.fid.num_samples = 0
    stages.append(stage(of_stage, begin=begin, fade_steps=max(c.fade // batch_size, 1)))
    begin += of_stage.steps
  return tuple(stages)


def stage(c: ConfigDict, *, begin: int, fade_steps: int) -> Experiment:
  """Training at `c.resolution`, from the step `begin` of the run on."""
  opened = partial(image_folder_or_noise, c)
  data = loader(c, opened())
  sizes = {'base': c.model.base, 'max_features': c.model.max_features, 'dtype': c.dtype}
  objective = gan(
    ProGANGenerator(c.resolution, data.spec['image'].shape[-1], **sizes),
    ProGANDiscriminator(fades=c.resolution > c.resolutions[0], **sizes),
    latent=c.model.latent,
    loss=gan_losses.wasserstein,
    discriminator_penalties=(gradient_penalty(c.penalty), drift()),
    scheduled=lambda step: {'fade': jnp.clip((step - begin) / fade_steps, 0.0, 1.0).astype(jnp.float32)},
  )
  return gan_experiment(c, objective, data, optimizers=adams(c.optimizer), reference=lambda: opened(c.reference))
