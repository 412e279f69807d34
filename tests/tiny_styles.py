"""The smallest StyleGAN2 that has classes and styles, on tiny_config's data."""

import numpy as np
from ml_collections import ConfigDict

from jaxgen import ema
from jaxgen.data.dataset import Dataset
from jaxgen.data.loader import Loader
from jaxgen.experiment import Experiment
from jaxgen.models.dcgan import DCGANDiscriminator
from jaxgen.models.stylegan2 import stylegan2_generator
from jaxgen.objectives.gan import losses
from jaxgen.objectives.gan.gan import gan
from jaxgen.optimizers import lazy_adam
from tests import tiny_config


def get_config() -> ConfigDict:
  return tiny_config.get_config()


def build(c: ConfigDict) -> Experiment:
  records = [{'image': np.full((8, 8, 3), label - 0.5, np.float32), 'label': np.int32(label)} for label in (0, 1)]
  dataset = Dataset('flat', 'train', records, dict, 'flat-8', ('dark', 'light'))
  adam = lazy_adam(0.001, b1=0.0, b2=0.99, every=0)
  generator = stylegan2_generator(8, width=8, layers=1, base=64, max_features=8, num_classes=2)
  return tiny_config.build(c)._replace(
    objective=gan(generator, DCGANDiscriminator(4, norm=False), latent=8, loss=losses.non_saturating, cond=('label',)),
    optimizers={'generator': adam, 'discriminator': adam},
    averages={'generator': ema.Average('generator', ema.constant(0.5))},
    data=Loader(dataset, batch_size=c.batch_size, seed=c.seed, threads=1),
    evaluators=(),
  )
