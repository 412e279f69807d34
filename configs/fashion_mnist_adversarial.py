"""emoji_adversarial on Fashion-MNIST, 60,000 clothes of 10 classes in gray, with a border to 32x32: one step.

  jaxgen data prepare fashion_mnist --source FOLDER_OF_IDX_FILES
  jaxgen weights get lpips
  ./launch/local train --config fashion_mnist_adversarial

Result, seed 0, on one core beside other programs, 18 minutes of the teacher, about half an hour of pairs and 14 minutes
against the discriminator: `fid_1k` with the 10,000 test images 46.2 of the teacher in its 12 steps and 48.0 in ten of
DDIM; one step 51.0 after the pairs and 38.0 after the discriminator: cloth is plain, sandals and bags are whole. FID
favours a discriminator that knows ImageNet, as Inception does (Kynkaanniemi et al. 2023), but the images look better,
too. Against
R3GAN's, which began from nothing, 78.4: after 400 steps it could not tell one from the other.
"""

from ml_collections import ConfigDict

from configs import emoji_adversarial

build = emoji_adversarial.build


def get_config() -> ConfigDict:
  c = emoji_adversarial.get_config()
  c.dataset, c.resolution, c.reference = 'fashion_mnist', 32, 'test'  # FID: with 10,000 images, not with 60,000
  c.steps, c.student.train_steps, c.adversary.train_steps = 1900, 1500, 900
  return c
