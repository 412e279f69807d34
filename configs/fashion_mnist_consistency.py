"""emoji_consistency on Fashion-MNIST, 60,000 clothes of 10 classes in gray, bordered to 32x32: a consistency model.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_consistency

Result of half the steps (`--config.steps=600`), seed 0: fid_256 173.5 in one step; the outlines of each class,
in blocks.
"""

from ml_collections import ConfigDict

from configs import emoji_consistency

build = emoji_consistency.build


def get_config() -> ConfigDict:
  c = emoji_consistency.get_config()
  c.dataset, c.resolution, c.reference = 'fashion_mnist', 32, 'test'  # FID: with 10,000 images, not with 60,000
  return c
