"""R3GAN on CIFAR-10 with labels, by the paper's recipe (Huang et al. 2024): FID 1.96 is published.

  jaxgen data prepare cifar10
  jaxgen train --config cifar10_r3gan

Batch 512, burn-in of 20 million images, half-life of the average 5 million; activations are bfloat16. For eight GPUs or
TPU chips. Result: not run yet.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import emoji_r3gan
from configs.cifar10_stylegan2_ada import opened


def get_config() -> ConfigDict:
  c = emoji_r3gan.get_config()
  c.dataset, c.data_dir, c.resolution = 'cifar10', '', 32
  c.model.update({'widths': (768, 768, 768, 768), 'blocks': 2})
  c.dtype = 'bfloat16'
  c.batch_size = 512
  c.steps = 200_000
  c.burn_in = 2e7
  c.optimizer.rate = (2e-4, 5e-5)
  c.gamma = (0.05, 0.005)
  c.augmentation = (0.0, 0.55)
  c.ema = ConfigDict({'images': 5e6, 'ramp': 0.05})
  c.samples.every = c.fid.every = c.checkpoint.every = 5_000
  c.fid.num_samples = 50_000
  c.fid.batch_size = c.sampling.batch_size = 512
  return c


build = partial(emoji_r3gan.build, opened=opened)
