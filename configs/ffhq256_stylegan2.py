"""StyleGAN2 on FFHQ at 256x256, config-f with the narrower layers of "paper256" (Karras et al. 2020).

  jaxgen data prepare image_folder --source FFHQ --size 256 --name ffhq
  jaxgen train --config ffhq256_stylegan2

25 million images of batch 64, R1 gamma 1, mirrored; the half-life of the average is 20,000 images; activations are
bfloat16. For eight GPUs or TPU chips. Result: not run yet.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import emoji_stylegan2
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.image_folder import image_folder
from jaxgen.data.datasets.synthetic import synthetic
from jaxgen.data.sources import source


def get_config() -> ConfigDict:
  c = emoji_stylegan2.get_config()
  c.dataset, c.data_dir, c.resolution, c.flip = 'ffhq', '', 256, True
  c.model.update({'width': 512, 'layers': 8, 'base': 16384, 'max_features': 512, 'mixing': 0.9})
  c.dtype = 'bfloat16'
  c.batch_size = 64
  c.steps = 390_625
  c.r1.gamma = 1.0
  c.path_length.every = 4
  c.optimizer.rate = 0.0025
  c.ema = ConfigDict({'images': 20_000.0, 'ramp': None})
  c.samples.every = c.fid.every = c.checkpoint.every = 10_000
  c.fid.num_samples = 50_000
  c.fid.batch_size = 128
  return c


def opened(c: ConfigDict, split: str = 'train') -> Dataset:
  if c.dataset == 'synthetic':
    return synthetic((c.resolution, c.resolution, 3))
  if ':' in c.dataset:
    return source(c.dataset, split, resolution=c.resolution, data_dir=c.data_dir)
  return image_folder('', split, size=c.resolution, name=c.dataset, data_dir=c.data_dir or None)


build = partial(emoji_stylegan2.build, opened=opened)
