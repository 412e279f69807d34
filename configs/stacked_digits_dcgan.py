"""A DCGAN on stacked digits: of 1,000 modes, three classes in three channels each, how many does it draw?

  jaxgen data prepare mnist --source FOLDER_OF_IDX_FILES
  jaxgen train --config stacked_digits_dcgan
  jaxgen train --config stacked_digits_dcgan --config.digits=fashion_mnist    # clothes for digits: not comparable

Without labels and DiffAugment. A small classifier is trained beside it; `modes`, `modes_kl` (nats to uniform) and the
classifier's accuracy are of evaluators/stacked.py. Result of a fifth of the steps (`--config.steps=2000`), seed 0, 16
minutes on one core: 873 of 1,000 modes in 26,000 images, KL 0.79 nats; the classifier is right on 98.9% of real digits.
"""

import optax
from ml_collections import ConfigDict

from configs import emoji_dcgan, emoji_stylegan2
from jaxgen.data.dataset import Dataset, at_resolution
from jaxgen.data.datasets.fashion_mnist import fashion_mnist
from jaxgen.data.datasets.mnist import mnist
from jaxgen.data.datasets.stacked import stacked
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.stacked import stacked_modes
from jaxgen.experiment import Experiment, chosen
from jaxgen.models.conv_classifier import ConvClassifier
from jaxgen.objectives.base import Objective
from jaxgen.objectives.gan.channel_classifier import NAME, with_channel_classifier

DIGITS = {'mnist': mnist, 'fashion_mnist': fashion_mnist}
CLASSES = 10


def get_config() -> ConfigDict:
  c = emoji_dcgan.get_config()
  c.dataset, c.resolution = 'stacked_digits', 32
  c.digits = 'mnist'
  c.num_images = 128_000
  c.held_out = 1000
  c.steps = 10_000
  c.classifier = ConfigDict({'widths': (32, 64, 128), 'rate': 1e-3})
  c.modes = ConfigDict({'num': 26_000, 'every': 2500})
  c.samples.every = c.checkpoint.every = 2500
  c.fid.num_samples = 0
  return c


def opened(c: ConfigDict, split: str = 'train') -> Dataset:
  num = c.num_images if split == 'train' else c.held_out
  digits = chosen(DIGITS, c.digits, field='digits')(split)
  return at_resolution(stacked(digits, num=num, seed=c.seed), c.resolution)


def learn(c: ConfigDict, *, channels: int, num_classes: int) -> Objective:
  unlabelled = emoji_dcgan.dcgan(c, channels=channels, num_classes=0)
  return with_channel_classifier(unlabelled, classifier(c), num_classes=CLASSES)


def classifier(c: ConfigDict) -> ConvClassifier:
  return ConvClassifier(CLASSES, c.classifier.widths)


def optimizers(c: ConfigDict) -> dict[str, optax.GradientTransformation]:
  return emoji_dcgan.adams(c) | {NAME: optax.adam(c.classifier.rate)}


def build(c: ConfigDict) -> Experiment:
  made = emoji_stylegan2.build(c, learn=learn, optimizers=optimizers, opened=opened)
  generate = make_generate(made.objective.sample, mesh=made.mesh, batch_size=c.sampling.batch_size)
  counted = stacked_modes(
    generate, classifier(c), mesh=made.mesh, held_out=opened(c, 'test'), num_classes=CLASSES, **c.modes
  )
  return made._replace(evaluators=(*made.evaluators, counted))
