"""A U-Net of Stable Diffusion's kind draws avatars from words, in pixels: the base of edits, control and adapters.

  jaxgen train --config avatars_unet
  jaxgen sample --run runs/avatars_unet --prompt 'a smiling woman with red hair and glasses' --out woman.png

Residual blocks in time's embedding, and at half and a quarter of the side transformers that read the words by
cross-attention: the layers that Prompt-to-Prompt, ControlNet, IP-Adapter and LoRA are made for. Text encoder, data,
times and measurements are those of avatars.

Result: not run.
"""

from ml_collections import ConfigDict

from configs import avatars as base

build = base.build


def get_config() -> ConfigDict:
  config = base.get_config()
  config.network = 'unet'
  config.model = ConfigDict(
    {'width': 32, 'multipliers': (1, 2, 2), 'blocks': 1, 'attention': (1, 2), 'heads': 2, 'transformer': 1, 'groups': 8}
  )
  return config
