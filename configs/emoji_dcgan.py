"""emoji_stylegan2's data with a DCGAN: batch norms, Adam at 2e-4, no regulariser.

  ./launch/local train --config emoji_dcgan

The generator is sampled with its running statistics, which are of the parameters themselves, so there is no average.

Result, seed 0, 20 minutes on one core with another program on the other: 901 steps; `fid_1k` 253.5 with 5,000 of the
training images; colours and places of the classes, no shapes, a checkerboard.
"""

from functools import partial

from ml_collections import ConfigDict

from jaxgen.config_parts import adams, gan_experiment, loader
from jaxgen.data.sources import source
from jaxgen.experiment import Experiment
from jaxgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.augmentation import diff_augment, no_augmentation
from jaxgen.objectives.gan.gan import gan


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'emoji64',
      'resolution': 64,
      'reference': 'train',  # the split that FID compares with
      'flip': False,
      'steps': 900,
      'batch_size': 64,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'width': 32, 'latent': 100},
      'diff_augment': False,
      'dtype': 'float32',
      'optimizer': {'rate': 2e-4, 'b1': 0.5, 'b2': 0.999},
      'ema': {'images': 0.0, 'ramp': 0.05},  # half-life; 0 for no average
      'sampling': {'batch_size': 64},
      'samples': {'every': 300, 'num': 56},
      'fid': {'every': 300, 'num_samples': 256, 'batch_size': 16},  # num_samples=0 for none
      'log_every': 50,
      'checkpoint': {'every': 300, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  opened = partial(source, c.dataset, resolution=c.resolution)
  data = loader(c, opened())
  num_classes, channels = data.dataset.num_classes, data.spec['image'].shape[-1]
  objective = gan(
    DCGANGenerator(c.resolution, channels, c.model.width, num_classes, dtype=c.dtype),
    DCGANDiscriminator(c.model.width, num_classes, dtype=c.dtype),
    latent=c.model.latent,
    loss=gan_losses.non_saturating,
    augmentation=diff_augment() if c.diff_augment else no_augmentation,
    cond=('label',) if num_classes else (),
  )
  return gan_experiment(c, objective, data, optimizers=adams(c.optimizer), reference=lambda: opened(c.reference))
