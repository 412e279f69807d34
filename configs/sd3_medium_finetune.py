"""Fine-tunes Stable Diffusion 3 medium at 1024 pixels on one's own captioned pictures: its whole transformer.

  jaxgen data encode --data folder:my_photos --size 1024 --autoencoder MODEL/vae --name my_photos_latents
  jaxgen train --config sd3_medium_finetune --config.weights=MODEL --config.latents=my_photos_latents
  jaxgen plan --config sd3_medium_finetune --topology v5p:2x2x2              # needs neither data nor weights

MODEL is a folder in diffusers' layout. Text encoders and autoencoder are frozen, in half precision and sharded over the
devices with the rest. The transformer has 2,028,328,000 parameters; docs/results.md has the plans. Result: not run.
"""

from ml_collections import ConfigDict

from configs import sd15_finetune as base

build = base.build


def get_config() -> ConfigDict:
  config = base.get_config()
  config.blank = 'sd3-medium'
  config.resolution = 1024
  config.sampling = ConfigDict({'steps': 28, 'scale': 7.0, 'batch_size': 16})
  return config
