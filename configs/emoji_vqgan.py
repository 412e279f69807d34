"""emoji_vae with a codebook: a VQGAN whose images are 8x8 grids of 256 codes.

  jaxgen weights get lpips                                    # once
  jaxgen train --config emoji_vqgan                           # leaves the VQModel in runs/emoji_vqgan/autoencoder

The same hardware and time. The codebook is a moving average; codes that nothing chooses take vectors of the images
(objectives/bottleneck.py). Result: not run in full; 300 steps of batch 8 on emoji64, the adversary from 150 on, of a
model twice as wide judged by VGG, use 97% of the codes, at PSNR 21.0 of held-out images.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import emoji_vae
from jaxgen.evaluators.reconstruction import CODES
from jaxgen.models.vq import VQModel
from jaxgen.objectives.bottleneck import Bottleneck, moving_codebook


def through(c: ConfigDict, side: int) -> Bottleneck:
  return moving_codebook(**c.codebook)


build = partial(emoji_vae.build, network=VQModel, bottleneck=through, latents=CODES)


def get_config() -> ConfigDict:
  c = emoji_vae.get_config()
  c.model.codes = 256
  c.codebook = ConfigDict({'commitment': 0.25, 'decay': 0.99, 'revive': 0.1})
  return c
