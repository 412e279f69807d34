"""emoji_unet on Fashion-MNIST, 60,000 clothes of 10 classes in gray, with a border to 32x32: a small ADM.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_unet

Result of a quarter of the steps (`--config.steps=300`), seed 0: fid_256 147.7; the outlines of each class, trousers and
boots nearly whole.
"""

from ml_collections import ConfigDict

from configs import emoji_unet

build = emoji_unet.build


def get_config() -> ConfigDict:
  c = emoji_unet.get_config()
  c.dataset, c.resolution, c.reference = 'fashion_mnist', 32, 'test'  # FID: with 10,000 images, not with 60,000
  return c
