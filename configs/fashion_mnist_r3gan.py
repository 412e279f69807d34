"""emoji_r3gan on Fashion-MNIST, 60,000 clothes of 10 classes in gray, with a border to 32x32.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_r3gan

Result, seed 0, 20 minutes on one core with another program on the other: 2,788 steps; `fid_1k` 74.2 with the 10,000
test images; clothes of every class, whole, a few of each over and over.
"""

from ml_collections import ConfigDict

from configs import emoji_r3gan

build = emoji_r3gan.build


def get_config() -> ConfigDict:
  c = emoji_r3gan.get_config()
  c.dataset, c.resolution, c.reference = 'fashion_mnist', 32, 'test'  # FID: with 10,000 images, not with 60,000
  c.model.update({'widths': (128, 64, 32, 16), 'group': 32})
  c.gamma = (0.5, 0.05)
  c.steps = 3_000
  c.samples.every = c.fid.every = c.checkpoint.every = 500
  return c
