"""A DiT learns Fashion-MNIST, 60,000 clothes of 10 classes at 28x28 in gray.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_dit

Result: not run yet.
"""

from ml_collections import ConfigDict

from configs import emoji_dit

build = emoji_dit.build


def get_config() -> ConfigDict:
  c = emoji_dit.get_config()
  c.dataset = 'fashion_mnist'
  return c
