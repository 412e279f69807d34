"""DCGAN on CelebA at 64x64, by the paper's recipe (Radford et al. 2016): batch 128, Adam at 2e-4 with b1 0.5.

  jaxgen data prepare celeb_a
  jaxgen train --config celeba_dcgan

One GPU or TPU chip. Result: not run yet.
"""

from ml_collections import ConfigDict

from jaxgen.config_parts import adams, gan_experiment, loader, source_or_noise
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.tfds_dataset import tfds_dataset
from jaxgen.experiment import Experiment
from jaxgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.augmentation import diff_augment, no_augmentation
from jaxgen.objectives.gan.gan import gan


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'celeb_a',
      'data_dir': '',
      'resolution': 64,
      'reference': 'train',  # the split that FID compares with
      'flip': False,
      'steps': 40_000,  # 25 epochs
      'batch_size': 128,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'width': 64, 'latent': 100},
      'diff_augment': False,
      'dtype': 'float32',
      'optimizer': {'rate': 2e-4, 'b1': 0.5, 'b2': 0.999},
      'ema': {'images': 0.0, 'ramp': 0.05},  # half-life; 0 for no average
      'sampling': {'batch_size': 256},
      'samples': {'every': 5_000, 'num': 56},
      'fid': {'every': 5_000, 'num_samples': 50_000, 'batch_size': 256},  # num_samples=0 for none
      'log_every': 50,
      'checkpoint': {'every': 5_000, 'keep': 2},
    }
  )


def opened(c: ConfigDict, split: str = 'train') -> Dataset:
  """The images without their attributes."""
  if c.dataset == 'synthetic' or ':' in c.dataset:
    return source_or_noise(c, split, num_classes=0)
  return tfds_dataset(c.dataset, split, size=c.resolution, label=None, data_dir=c.data_dir or None)


def build(c: ConfigDict) -> Experiment:
  data = loader(c, opened(c))
  num_classes, channels = data.dataset.num_classes, data.spec['image'].shape[-1]
  objective = gan(
    DCGANGenerator(c.resolution, channels, c.model.width, num_classes, dtype=c.dtype),
    DCGANDiscriminator(c.model.width, num_classes, dtype=c.dtype),
    latent=c.model.latent,
    loss=gan_losses.non_saturating,
    augmentation=diff_augment() if c.diff_augment else no_augmentation,
    cond=('label',) if num_classes else (),
  )
  return gan_experiment(c, objective, data, optimizers=adams(c.optimizer), reference=lambda: opened(c, c.reference))
