"""emoji_mean_flow by improved MeanFlow, x-prediction in pixels: one pass an image, at any scale of guidance.

  ./launch/local train --config emoji_improved_mean_flow

Result: not run yet; emoji_mean_flow has fid_256 196.1 in one step.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import emoji_mean_flow
from jaxgen.config_parts import image_experiment, loader, muon_and_adam
from jaxgen.data.sources import source
from jaxgen.experiment import Experiment
from jaxgen.models.dit import DiT
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.few_step.improved_mean_flow import improved_mean_flow
from jaxgen.processes import parameterisation, times
from jaxgen.samplers import grids


def get_config() -> ConfigDict:
  c = emoji_mean_flow.get_config()
  c.different = 0.5
  c.largest = 8.0  # scale of guidance in training
  return c


def build(c: ConfigDict) -> Experiment:
  data = loader(c, source(c.dataset, resolution=c.resolution))
  num_classes = data.dataset.num_classes
  objective = improved_mean_flow(
    DiT(interval=True, guided=True, num_classes=num_classes, **c.model),
    shape=data.spec['image'].shape[1:],
    times=times.logit_normal(-0.4),
    jumps=grids.uniform(c.sampling.steps),
    different=c.different,
    conditioner=labels(num_classes, drop_rate=c.drop_rate),
    scale=c.sampling.scale,
    largest=c.largest,
    parameterisation=partial(parameterisation.x0, margin=c.margin),
  )
  return image_experiment(c, objective, data, optimizers={'net': muon_and_adam(c.optimizer, steps=c.steps)})
