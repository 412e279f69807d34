"""Fine-tunes SDXL 1.0 at 1024 pixels on one's own captioned pictures: its whole U-Net.

  jaxgen data encode --data folder:my_photos --size 1024 --autoencoder MODEL/vae --name my_photos_latents
  jaxgen train --config sdxl_finetune --config.weights=MODEL --config.latents=my_photos_latents
  jaxgen plan --config sdxl_finetune --topology v5p:2x2x2              # needs neither data nor weights

MODEL is a folder in diffusers' layout. Text encoders and autoencoder are frozen, in half precision and sharded over the
devices with the rest. The U-Net has 2,567,463,684 parameters; docs/results.md has the plans. Result: not run.
"""

from ml_collections import ConfigDict

from configs import sd15_finetune as base

build = base.build


def get_config() -> ConfigDict:
  config = base.get_config()
  config.blank = 'sdxl'
  config.resolution = 1024
  config.sampling = ConfigDict({'steps': 30, 'scale': 5.0, 'batch_size': 16})
  return config
