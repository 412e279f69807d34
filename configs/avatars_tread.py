"""avatars trained by TREAD: in training, the middle of the transformer sees half of the tokens.

  jaxgen train --config avatars_tread
  jaxgen train --config avatars_tread --config.dataset=avatars --config.model.patch=4      # 64 pixels, 256 tokens

All else, prompts, classifier and samples, is as in avatars.

Result: not run yet.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import avatars
from jaxgen.experiment import Experiment
from jaxgen.models.pixart import PixArt
from jaxgen.models.routed import Routed


def get_config() -> ConfigDict:
  c = avatars.get_config()
  c.route = (1, 4)  # the blocks that see a part of the tokens, the first and the one behind the last
  c.keep = 0.5  # share of the tokens that those blocks see
  return c


def build(c: ConfigDict) -> Experiment:
  stage = avatars.build(c)
  known: Any = stage.objective.denoising
  if c.network != 'pixart':
    raise ValueError(f'config.network is {c.network!r}; pixart alone can route its tokens')
  net = PixArt(**avatars.NETWORKS['pixart'].keywords, **c.model, route=tuple(c.route))
  objective = avatars.denoising(
    c, Routed(net, c.keep), shape=known.shape, guide=known.guide, conditioner=stage.objective.conditioner
  )
  return stage._replace(objective=objective)
