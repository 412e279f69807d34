"""emoji_stylegan2 on Fashion-MNIST, 60,000 clothes of 10 classes in gray, with a border to 32x32.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_stylegan2

Result, seed 0, 20 minutes on one core with another program on the other: 3,831 steps; clothes of every class, shoes the
sharpest, with grain. FID: not measured yet.
"""

from ml_collections import ConfigDict

from configs import emoji_stylegan2

build = emoji_stylegan2.build


def get_config() -> ConfigDict:
  c = emoji_stylegan2.get_config()
  c.dataset, c.resolution, c.reference = 'fashion_mnist', 32, 'test'  # FID: with 10,000 images, not with 60,000
  # As the ADA paper's for CIFAR-10: two layers of mapping, neither mixing nor path lengths; R1 lighter.
  c.model.update({'layers': 2, 'base': 512, 'mixing': 0.0})
  c.path_length.every = 0
  c.r1.gamma = 0.01
  c.batch_size = 16
  c.ada.ramp = 0.0  # there is enough data not to need it
  return c
