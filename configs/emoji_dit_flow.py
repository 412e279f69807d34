"""emoji_dit by flow matching: straight paths, logit-normal times, the loss on the velocity.

  ./launch/local train --config emoji_dit_flow

The same hardware and time as emoji_dit. Result: not run yet.
"""

from ml_collections import ConfigDict

from configs import emoji_dit

build = emoji_dit.build


def get_config() -> ConfigDict:
  c = emoji_dit.get_config()
  c.process = 'flow'
  return c
