"""emoji_dit without labels, guided to a class by a classifier of noisy images that is trained beside it.

  ./launch/local train --config emoji_classifier

The same hardware as emoji_dit; a step costs about a third more. Result of half the steps (`--config.steps=600`), seed
0: the classifier is right on 44% of noisy images of 7 classes, fid_256 232.1; each class in its colours and outlines.
"""

from functools import partial

import optax
from ml_collections import ConfigDict

from jaxgen.config_parts import PROCESSES, SAMPLERS, image_experiment, loader, muon_and_adam
from jaxgen.data.sources import source
from jaxgen.experiment import Experiment, chosen
from jaxgen.models.dit import DiT
from jaxgen.models.unet_classifier import UNetClassifier
from jaxgen.objectives.diffusion.classifier import guided_by_classifier
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'emoji32',  # or folder:PATH, ...: jaxgen/data/sources.py
      'resolution': 0,  # side of the images; 0 for images as they are
      'reference': 'train',  # the split that FID compares with
      'flip': False,
      'process': 'cosine',
      'steps': 1200,
      'batch_size': 32,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'patch': 4, 'depth': 5, 'width': 128, 'heads': 2},
      'margin': 0.05,  # times nearer to 0 than this count as this one where x0 is turned into v: JiT, Li & He 2025
      'optimizer': {'muon': 0.02, 'adam': 2e-3, 'b2': 0.95, 'warmup': 20},  # learning rates: of matrices, of the rest
      'classifier': {
        'model': {'width': 16, 'multipliers': (1, 2, 4), 'blocks': 1, 'attention': (2,), 'groups': 8, 'dropout': 0.1},
        'learning_rate': 1e-3,
        'weight_decay': 0.05,
      },
      'ema': 0.99,
      'clip_norm': 1.0,
      'sampling': {'name': 'DPM-Solver++ 2M', 'steps': 12, 'scale': 3.0, 'batch_size': 64},
      'evaluate_first': True,
      'samples': {'every': 300, 'per_class': 8},
      'fid': {'every': 600, 'num_samples': 256, 'batch_size': 16},  # num_samples=0 for none
      'held_out': {'every': 300, 'num': 256, 'batch_size': 64},  # the loss on the test split, if there is one
      'log_every': 50,
      'checkpoint': {'every': 300, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  data = loader(c, source(c.dataset, resolution=c.resolution))
  num_classes = data.dataset.num_classes
  if not num_classes:
    raise ValueError(f'{c.dataset} has no classes, and a classifier needs some; train emoji_dit on it')
  process, loss_in, time_sampler = chosen(PROCESSES, c.process, field='process')
  solve = chosen(SAMPLERS, c.sampling.name, field='sampling.name')
  unconditional = diffusion(
    DiT(**c.model),
    process,
    shape=data.spec['image'].shape[1:],
    parameterisation=partial(parameterisation.x0, margin=c.margin),
    loss_in=loss_in,
    times=time_sampler,
    sampler=Sampler(solve, grids.uniform(c.sampling.steps)),
    guide=(clip(),),
  )
  classifier = UNetClassifier(num_classes=num_classes, **c.classifier.model)
  objective = guided_by_classifier(unconditional, classifier, scale=c.sampling.scale)
  optimizers = {
    'net': muon_and_adam(c.optimizer, steps=c.steps),
    'classifier': optax.adamw(c.classifier.learning_rate, weight_decay=c.classifier.weight_decay),
  }
  return image_experiment(c, objective, data, optimizers=optimizers)
