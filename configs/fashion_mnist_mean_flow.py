"""emoji_mean_flow on Fashion-MNIST, 60,000 clothes of 10 classes at 28x28 in gray: MeanFlow.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  ./launch/local train --config fashion_mnist_mean_flow

Result: not run yet.
"""

from ml_collections import ConfigDict

from configs import emoji_mean_flow

build = emoji_mean_flow.build


def get_config() -> ConfigDict:
  c = emoji_mean_flow.get_config()
  c.dataset = 'fashion_mnist'
  return c
