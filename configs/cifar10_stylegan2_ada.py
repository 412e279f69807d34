"""StyleGAN2-ADA on CIFAR-10 with labels, by the paper's recipe (Karras et al. 2020): FID 2.42 is published.

  jaxgen data prepare cifar10
  jaxgen train --config cifar10_stylegan2_ada

No path lengths, style mixing or lazy R1 interval other than 16; two mapping layers; standard deviations of 32 images;
the average's half-life is 500,000 images. The paper took two GPUs of its time for 100 million images. Differs from it:
the discriminator is residual, as at other sizes. Result: not run yet.
"""

from functools import partial

from ml_collections import ConfigDict

from jaxgen.config_parts import gan_experiment, loader, source_or_noise
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
      'dataset': 'cifar10',
      'data_dir': '',
      'resolution': 32,
      'reference': 'train',  # the split that FID compares with
      'flip': False,
      'steps': 1_562_500,
      'batch_size': 64,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'width': 512, 'layers': 2, 'base': 32768, 'max_features': 512, 'mixing': 0.0},
      'group': 32,  # images of one minibatch standard deviation
      'dtype': 'float32',
      'r1': {'gamma': 0.01, 'every': 16},
      'path_length': {'weight': 2.0, 'every': 0},  # 0 for none
      'ada': {'target': 0.6, 'ramp': 500_000.0},  # ramp: images from 0 to 1; 0 for none
      'optimizer': {'rate': 0.0025, 'b1': 0.0, 'b2': 0.99},
      'ema': {'images': 500_000.0, 'ramp': 0.05},  # half-life; 0 for no average
      'sampling': {'batch_size': 256},
      'samples': {'every': 20_000, 'num': 56},
      'fid': {'every': 20_000, 'num_samples': 50_000, 'batch_size': 256},  # num_samples=0 for none
      'log_every': 50,
      'checkpoint': {'every': 20_000, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  opened = partial(source_or_noise, c, num_classes=10)
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
