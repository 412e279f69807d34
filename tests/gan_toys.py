"""The smallest GAN that has everything a GAN keeps: running statistics, the statistics of a batch, an adaptive
augmentation and a mean path length."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import ema, sharding
from jaxgen.checkpoint import Policy
from jaxgen.data.dataset import Dataset
from jaxgen.data.loader import Loader
from jaxgen.experiment import Experiment
from jaxgen.models.layers.batch_norm import BatchStatisticsNorm
from jaxgen.models.layers.critics import dense
from jaxgen.models.stylegan2 import minibatch_deviation
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan import regularizers
from jaxgen.objectives.gan.augmentation import adaptive
from jaxgen.objectives.gan.augmentation_pipeline import Pipeline
from jaxgen.objectives.gan.gan import gan

SHAPE = (8, 8, 3)
COLOURS = Pipeline(*[0.0] * 7, luma_flip=0.0, hue=0.0, saturation=0.0)  # whose program is small
LATENT = 4


class Generator(nn.Module):
  """Styles, a batch norm and one layer."""

  def setup(self):
    self.mapping = nn.Dense(6)
    self.norm = nn.BatchNorm(momentum=0.9)
    self.out = nn.Dense(192)

  def __call__(self, z, cond, *, keys, train=False):
    return self._draw(self.styles(z, cond), train)

  def styles(self, z, cond):
    return jnp.repeat(nn.tanh(self.mapping(z))[:, None], 2, axis=1)

  def images(self, ws, noise):
    return self._draw(ws, False)

  def _draw(self, ws, train):
    x = self.norm(ws.reshape(len(ws), -1), use_running_average=not train)
    return self.out(nn.tanh(x)).reshape(-1, *SHAPE)


class Discriminator(nn.Module):
  """A batch norm, spectral norm, the deviation of a group."""

  @nn.compact
  def __call__(self, images, cond, *, train=False):
    x = nn.Conv(4, (3, 3), (4, 4), name='conv')(images)
    x = nn.leaky_relu(BatchStatisticsNorm(name='norm')(x), 0.2)
    x = minibatch_deviation(x, 4).reshape(len(x), -1)
    return dense(1, spectral=True, train=train, name='out')(x)[:, 0]


def objective(**changes: Any):
  fields = {
    'latent': LATENT,
    'loss': gan_losses.non_saturating,
    'generator_penalties': (regularizers.path_length(2.0, every=2),),
    'discriminator_penalties': (regularizers.r1(1.0, every=2),),
    'augmentation': adaptive(COLOURS, target=0.6, interval=2, ramp=200, start=0.3),
  }
  return gan(Generator(), Discriminator(), **(fields | changes))


# Adam's steps have the size of the rate however small a gradient is; where it is 0 but for rounding (a bias before a
# batch norm), they would be of rounding alone. Hence the large eps.
OPTIMIZERS = {name: optax.adam(1e-2, b1=0.0, b2=0.99, eps=1e-2) for name in ('generator', 'discriminator')}
AVERAGES = {'generator': ema.Average('generator', ema.constant(0.9))}


def images(num: int) -> np.ndarray:
  return np.random.default_rng(0).uniform(-1, 1, (num, *SHAPE)).astype(np.float32)


def experiment(**changes: Any) -> Experiment:
  """Six steps of batch 16, a checkpoint every 3."""
  dataset = Dataset('toy', 'train', list(images(48)), lambda image: {'image': image}, 'toy')
  fields = {
    'objective': objective(),
    'optimizers': OPTIMIZERS,
    'averages': AVERAGES,
    'data': Loader(dataset, batch_size=16, seed=0),
    'steps': 6,
    'mesh': sharding.make_mesh(data=4, fsdp=2),
    'log_every': 1,
    'checkpoints': Policy(every=3, keep=3),
  }
  return Experiment(**(fields | changes))


def batch(num: int = 16) -> dict[str, jax.Array]:
  return {'image': jnp.asarray(images(num))}
