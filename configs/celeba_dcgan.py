"""DCGAN on CelebA at 64x64, by the paper's recipe (Radford et al. 2016): batch 128, Adam at 2e-4 with b1 0.5.

  jaxgen data prepare celeb_a
  jaxgen train --config celeba_dcgan

One GPU or TPU chip. Result: not run yet.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import emoji_dcgan
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.synthetic import synthetic
from jaxgen.data.datasets.tfds_dataset import tfds_dataset
from jaxgen.data.sources import source


def get_config() -> ConfigDict:
  c = emoji_dcgan.get_config()
  c.dataset, c.data_dir, c.resolution = 'celeb_a', '', 64
  c.model.width = 64
  c.batch_size = 128
  c.steps = 40_000  # 25 epochs
  c.samples.every = c.fid.every = c.checkpoint.every = 5_000
  c.fid.num_samples = 50_000
  c.fid.batch_size = c.sampling.batch_size = 256
  return c


def opened(c: ConfigDict, split: str = 'train') -> Dataset:
  if c.dataset == 'synthetic':
    return synthetic((c.resolution, c.resolution, 3), num_classes=0)
  if ':' in c.dataset:
    return source(c.dataset, split, resolution=c.resolution, data_dir=c.data_dir)
  return tfds_dataset(c.dataset, split, size=c.resolution, label=None, data_dir=c.data_dir or None)


build = partial(emoji_dcgan.build, opened=opened)
