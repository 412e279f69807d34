"""emoji_mean_flow on Fashion-MNIST, 60,000 clothes of 10 classes in gray, with a border to 32x32: MeanFlow.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_mean_flow

Result of half the steps (`--config.steps=600`), seed 0: fid_256 150.8 in one step; tops and trousers much as
fashion_mnist_dit_flow's in twelve, shoes in pieces.
"""

from ml_collections import ConfigDict

from configs import emoji_mean_flow

build = emoji_mean_flow.build


def get_config() -> ConfigDict:
  c = emoji_mean_flow.get_config()
  c.dataset, c.resolution, c.reference = 'fashion_mnist', 32, 'test'  # FID: with 10,000 images, not with 60,000
  return c
