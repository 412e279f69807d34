"""emoji_dcgan on Fashion-MNIST, 60,000 clothes of 10 classes in gray, with a border to 32x32.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_dcgan

Result, seed 0, 20 minutes on one core with another program on the other: 5,798 steps; `fid_1k` 39.2 with the 10,000
test images; clothes of every class, unlike each other, with specks.
"""

from ml_collections import ConfigDict

from configs import emoji_dcgan

build = emoji_dcgan.build


def get_config() -> ConfigDict:
  c = emoji_dcgan.get_config()
  c.dataset, c.resolution, c.reference = 'fashion_mnist', 32, 'test'  # FID: with 10,000 images, not with 60,000
  c.steps = 6_000
  c.samples.every = c.fid.every = c.checkpoint.every = 1_500
  return c
