"""A DCGAN on stacked digits, three classes in three channels: how many of 1,000 modes does it cover?

  jaxgen data prepare mnist --source FOLDER_OF_IDX_FILES
  jaxgen train --config stacked_digits_dcgan
  jaxgen train --config stacked_digits_dcgan --config.digits=fashion_mnist    # clothes for digits: not comparable

Without labels and DiffAugment. A small classifier is trained beside it; `modes`, `modes_kl` (nats to uniform) and the
classifier's accuracy are of evaluators/stacked.py. Result of a fifth of the steps (`--config.steps=2000`), seed 0, 16
minutes on one core: 873 of 1,000 modes in 26,000 images, KL 0.79 nats; the classifier is right on 98.9% of real digits.
"""

import optax
from ml_collections import ConfigDict

from jaxgen.config_parts import adams, gan_experiment, loader
from jaxgen.data.dataset import Dataset, at_resolution
from jaxgen.data.datasets.fashion_mnist import fashion_mnist
from jaxgen.data.datasets.mnist import mnist
from jaxgen.data.datasets.stacked import stacked
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.stacked import stacked_modes
from jaxgen.experiment import Experiment, chosen
from jaxgen.models.conv_classifier import ConvClassifier
from jaxgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.augmentation import diff_augment, no_augmentation
from jaxgen.objectives.gan.channel_classifier import NAME, with_channel_classifier
from jaxgen.objectives.gan.gan import gan

DIGITS = {'mnist': mnist, 'fashion_mnist': fashion_mnist}
CLASSES = 10


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'stacked_digits',
      'digits': 'mnist',  # or fashion_mnist
      'num_images': 128_000,
      'held_out': 1000,
      'resolution': 32,
      'reference': 'train',  # the split that FID compares with
      'flip': False,
      'steps': 10_000,
      'batch_size': 64,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'width': 32, 'latent': 100},
      'diff_augment': False,
      'dtype': 'float32',
      'optimizer': {'rate': 2e-4, 'b1': 0.5, 'b2': 0.999},
      'classifier': {'widths': (32, 64, 128), 'rate': 1e-3},
      'ema': {'images': 0.0, 'ramp': 0.05},  # half-life; 0 for no average
      'sampling': {'batch_size': 64},
      'modes': {'num': 26_000, 'every': 2500},
      'samples': {'every': 2500, 'num': 56},
      'fid': {'every': 300, 'num_samples': 0, 'batch_size': 16},  # num_samples=0 for none
      'log_every': 50,
      'checkpoint': {'every': 2500, 'keep': 2},
    }
  )


def opened(c: ConfigDict, split: str = 'train') -> Dataset:
  num = c.num_images if split == 'train' else c.held_out
  digits = chosen(DIGITS, c.digits, field='digits')(split)
  return at_resolution(stacked(digits, num=num, seed=c.seed), c.resolution)


def build(c: ConfigDict) -> Experiment:
  data = loader(c, opened(c))
  unlabelled = gan(
    DCGANGenerator(c.resolution, data.spec['image'].shape[-1], c.model.width, 0, dtype=c.dtype),
    DCGANDiscriminator(c.model.width, 0, dtype=c.dtype),
    latent=c.model.latent,
    loss=gan_losses.non_saturating,
    augmentation=diff_augment() if c.diff_augment else no_augmentation,
    cond=(),
  )
  classifier = ConvClassifier(CLASSES, c.classifier.widths)
  objective = with_channel_classifier(unlabelled, classifier, num_classes=CLASSES)
  optimizers = {**adams(c.optimizer), NAME: optax.adam(c.classifier.rate)}
  stage = gan_experiment(c, objective, data, optimizers=optimizers, reference=lambda: opened(c, c.reference))
  generate = make_generate(objective.sample, mesh=stage.mesh, batch_size=c.sampling.batch_size)
  counted = stacked_modes(
    generate, classifier, mesh=stage.mesh, held_out=opened(c, 'test'), num_classes=CLASSES, **c.modes
  )
  return stage._replace(evaluators=(*stage.evaluators, counted))
