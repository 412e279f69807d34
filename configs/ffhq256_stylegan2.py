"""StyleGAN2 on FFHQ at 256x256, config-f with the narrower layers of "paper256" (Karras et al. 2020).

  jaxgen data prepare image_folder --source FFHQ --size 256 --name ffhq
  jaxgen train --config ffhq256_stylegan2

25 million images of batch 64, R1 gamma 1, mirrored; the half-life of the average is 20,000 images; activations are
bfloat16. For eight GPUs or TPU chips. Result: not run yet.
"""

from functools import partial

from ml_collections import ConfigDict

from jaxgen.config_parts import gan_experiment, image_folder_or_noise, loader
from jaxgen.experiment import Experiment
from jaxgen.models.stylegan2 import StyleGAN2Discriminator, stylegan2_generator
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.augmentation import adaptive, no_augmentation
from jaxgen.objectives.gan.augmentation_pipeline import Pipeline
from jaxgen.objectives.gan.gan import gan
from jaxgen.objectives.gan.regularizers import path_length, r1
from jaxgen.optimizers import lazy_adam


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'ffhq',
      'data_dir': '',
      'resolution': 256,
      'reference': 'train',  # the split that FID compares with
      'flip': True,
      'steps': 390_625,
      'batch_size': 64,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'width': 512, 'layers': 8, 'base': 16384, 'max_features': 512, 'mixing': 0.9},
      'group': 4,  # images of one minibatch standard deviation
      'dtype': 'bfloat16',
      'r1': {'gamma': 1.0, 'every': 16},
      'path_length': {'weight': 2.0, 'every': 4},  # 0 for none
      'ada': {'target': 0.6, 'ramp': 0.0},  # ramp: images from 0 to 1, such as 50,000; 0 for none
      'optimizer': {'rate': 0.0025, 'b1': 0.0, 'b2': 0.99},
      'ema': {'images': 20_000.0, 'ramp': None},  # half-life; 0 for no average
      'sampling': {'batch_size': 64},
      'samples': {'every': 10_000, 'num': 56},
      'fid': {'every': 10_000, 'num_samples': 50_000, 'batch_size': 128},  # num_samples=0 for none
      'log_every': 50,
      'checkpoint': {'every': 10_000, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  opened = partial(image_folder_or_noise, c)
  data = loader(c, opened())
  num_classes, channels = data.dataset.num_classes, data.spec['image'].shape[-1]
  m = c.model
  objective = gan(
    stylegan2_generator(c.resolution, channels=channels, num_classes=num_classes, dtype=c.dtype, **m),
    StyleGAN2Discriminator(num_classes, base=m.base, max_features=m.max_features, group=c.group, dtype=c.dtype),
    latent=m.width,
    loss=gan_losses.non_saturating,
    generator_penalties=(path_length(**c.path_length),) if c.path_length.every else (),
    discriminator_penalties=(r1(**c.r1),),
    cond=('label',) if num_classes else (),
    augmentation=adaptive(Pipeline(), **c.ada) if c.ada.ramp else no_augmentation,
  )
  adam = partial(lazy_adam, c.optimizer.rate, b1=c.optimizer.b1, b2=c.optimizer.b2)
  optimizers = {'generator': adam(every=c.path_length.every), 'discriminator': adam(every=c.r1.every)}
  return gan_experiment(c, objective, data, optimizers=optimizers, reference=lambda: opened(c.reference))
