"""A DiT learns Fashion-MNIST, 60,000 clothes of 10 classes in gray, with a border to 32x32.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_dit

Result, seed 0, 1,500 steps, 16 minutes on one core with another program on the other: clothes of every class, whole and
bright, as guidance 3 has them; sandals in pieces. FID: not measured yet.
"""

from ml_collections import ConfigDict

from configs import emoji_dit

build = emoji_dit.build


def get_config() -> ConfigDict:
  c = emoji_dit.get_config()
  c.dataset, c.resolution, c.reference = 'fashion_mnist', 32, 'test'  # FID: with 10,000 images, not with 60,000
  return c
