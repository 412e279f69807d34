"""avatars trained with REPA: tokens of a block are aligned with a frozen encoder's features of the clean picture.

  jaxgen train --config avatars_repa
  jaxgen train --config avatars_repa --config.projector=spatial          # iREPA

The encoder is the classifier of attributes that comes with jaxgen, 8 x 8 features of its third convolution. It knows
the attributes that attributes_test measures, and pairs of words that avatars holds out: a gain here says that an
encoder with the right knowledge helps, not how much one without labels does.

Result: not run yet.
"""

from typing import Any

import optax
from ml_collections import ConfigDict

from configs import avatars
from jaxgen.experiment import Experiment
from jaxgen.models.pixart import PixArt
from jaxgen.objectives.diffusion import repa
from jaxgen.pretrained import attribute_classifier

PROJECTORS = {'per_token': (repa.PerToken, lambda y: y), 'spatial': (repa.Spatial, repa.spatially)}


def get_config() -> ConfigDict:
  c = avatars.get_config()
  c.depth = 2  # block whose tokens are aligned
  c.projector = 'per_token'  # or spatial
  c.weight = 0.5
  c.stop = 800  # step after which there is no alignment
  c.projector_rate = 1e-3
  return c


def build(c: ConfigDict) -> Experiment:
  stage = avatars.build(c)
  known: Any = stage.objective.denoising
  classifier, params = attribute_classifier.read()

  def encode(frozen: Any, images: Any) -> Any:
    return attribute_classifier.hidden(classifier, frozen['encoder'], images, layer=2)

  projector, normalise = PROJECTORS[c.projector]
  if c.network != 'pixart':
    raise ValueError(f'config.network is {c.network!r}; pixart alone gives its hidden tokens')
  net = PixArt(**avatars.NETWORKS['pixart'].keywords, **c.model, hidden=(c.depth,))
  objective = avatars.denoising(
    c,
    net,
    shape=known.shape,
    guide=known.guide,
    conditioner=stage.objective.conditioner,
    beside=repa.repa(
      encode, depth=c.depth, projector=projector, normalise=normalise, weight=c.weight, stop=c.stop or None
    ),
  )
  optimizers = {**stage.optimizers, repa.NAME: optax.adam(c.projector_rate)}
  return stage._replace(objective=objective, optimizers=optimizers, frozen={'encoder': params})
