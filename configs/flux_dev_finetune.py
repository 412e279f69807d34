"""Fine-tunes Flux.1-dev at 1024 pixels on one's own captioned pictures: its whole transformer.

  jaxgen data encode --data folder:my_photos --size 1024 --autoencoder MODEL/vae --name my_photos_latents
  jaxgen train --config flux_dev_finetune --config.weights=MODEL --config.latents=my_photos_latents
  jaxgen plan --config flux_dev_finetune --topology v5p:2x2x2              # needs neither data nor weights

MODEL is a folder in diffusers' layout. Text encoders and autoencoder are frozen, in half precision and sharded over the
devices with the rest. The transformer has 11,901,408,320 parameters; docs/results.md has the plans. Result: not run.
"""

from ml_collections import ConfigDict

from configs import sd15_finetune as base

build = base.build


def get_config() -> ConfigDict:
  config = base.get_config()
  config.blank = 'flux-dev'
  config.resolution = 1024
  config.drop_rate = 0.0  # Flux has no null text
  config.batch_size = 32
  config.sampling = ConfigDict({'steps': 28, 'scale': 3.5, 'batch_size': 16})
  return config
