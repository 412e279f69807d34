"""StyleGAN2-ADA on CIFAR-10 with labels, by the paper's recipe (Karras et al. 2020): FID 2.42 is published.

  jaxgen data prepare cifar10
  jaxgen train --config cifar10_stylegan2_ada

No path lengths, style mixing or lazy R1 interval other than 16; two mapping layers; standard deviations of 32 images;
the average's half-life is 500,000 images. The paper took two GPUs of its time for 100 million images. Differs from it:
the discriminator is residual, as at other sizes. Result: not run yet.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import emoji_stylegan2
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.synthetic import synthetic
from jaxgen.data.sources import source


def get_config() -> ConfigDict:
  c = emoji_stylegan2.get_config()
  c.dataset, c.data_dir, c.resolution = 'cifar10', '', 32
  c.model.update({'width': 512, 'layers': 2, 'base': 32768, 'max_features': 512})
  c.batch_size, c.group = 64, 32
  c.steps = 1_562_500
  c.r1.gamma = 0.01
  c.optimizer.rate = 0.0025
  c.ada.ramp = 500_000.0
  c.ema = ConfigDict({'images': 500_000.0, 'ramp': 0.05})
  c.samples.every = c.fid.every = c.checkpoint.every = 20_000
  c.fid.num_samples = 50_000
  c.fid.batch_size = c.sampling.batch_size = 256
  return c


def opened(c: ConfigDict, split: str = 'train') -> Dataset:
  if c.dataset == 'synthetic':
    return synthetic((c.resolution, c.resolution, 3), num_classes=10)
  return source(c.dataset, split, resolution=c.resolution, data_dir=c.data_dir)


build = partial(emoji_stylegan2.build, opened=opened)
