"""emoji_latent_dit with a U-Net: latent diffusion as it began, in small.

  jaxgen train --config emoji_ldm               # after emoji_vae's three commands

Result, seed 0, two CPU cores, 28 minutes beside other programs: fid_256 158.6 at step 600 and 146.5 at 1,200.
"""

from functools import partial

import optax
from ml_collections import ConfigDict

from configs import emoji_latent_dit
from jaxgen.models.unet import UNet


def adam(c: ConfigDict) -> optax.GradientTransformation:
  o = c.optimizer
  return optax.adam(optax.warmup_cosine_decay_schedule(0.0, o.rate, min(o.warmup, c.steps // 2), c.steps), b2=o.b2)


build = partial(emoji_latent_dit.build, network=UNet, optimizer=adam)


def get_config() -> ConfigDict:
  c = emoji_latent_dit.get_config()
  c.model = ConfigDict(
    {'width': 64, 'multipliers': (1, 2), 'blocks': 1, 'attention': (0, 1), 'heads': 2, 'groups': 16, 'dropout': 0.0}
  )
  c.optimizer = ConfigDict({'rate': 1e-3, 'b2': 0.95, 'warmup': 100})
  return c
