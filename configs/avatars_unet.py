"""Text to image on avatars by a U-Net like Stable Diffusion's, in pixels: the base of edits, control and adapters.

  jaxgen train --config avatars_unet
  jaxgen sample --run runs/avatars_unet --prompt 'a smiling woman with red hair and glasses' --out woman.png

Residual blocks, and after each a transformer that reads the words by cross-attention: the layers that Prompt-to-Prompt,
ControlNet, IP-Adapter and LoRA were made for. Its first convolution reads squares of 2x2 pixels, so that it costs a
third of one that reads pixels. Text encoder, data, times and measurements are those of avatars.

Result: not run.
"""

from ml_collections import ConfigDict

from configs import avatars as base

build = base.build


def get_config() -> ConfigDict:
  config = base.get_config()
  config.network = 'unet'
  config.model = ConfigDict(
    {
      'width': 48,
      'multipliers': (1, 2),
      'blocks': 1,
      'attention': (0, 1),
      'heads': 2,
      'transformer': 1,
      'patch': 2,
      'groups': 8,
    }
  )
  return config
