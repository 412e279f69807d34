"""emoji_stylegan2 on Fashion-MNIST, 60,000 clothes of 10 classes in gray, with a border to 32x32.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_stylegan2

Result, seed 0, 20 minutes on one core with another program on the other: 11,833 steps; `fid_1k` 37.8 with the 10,000
test images; clothes of every class, whole and unlike each other, the sandals too. Steps count more than images here:
87.0 of 4,801 steps of 16 images with `base` 512, half the learning rate and an R1 of 0.01, whose cloth is all dots;
52.3 of 5,515 steps of 32 images with an R1 of 0.2; 37.9 of 19,454 steps of 8.
"""

from ml_collections import ConfigDict

from configs import emoji_stylegan2

build = emoji_stylegan2.build


def get_config() -> ConfigDict:
  c = emoji_stylegan2.get_config()
  c.dataset, c.resolution, c.reference = 'fashion_mnist', 32, 'test'  # FID: with 10,000 images, not with 60,000
  c.model.base = 256
  c.r1.gamma = 0.1
  c.steps = 12_000
  c.samples.every = c.fid.every = c.checkpoint.every = 3_000
  return c
