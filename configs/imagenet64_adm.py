"""ADM on ImageNet at 64x64 with class labels: cosine schedule, learned variance (Dhariwal & Nichol 2021).

  jaxgen train --config imagenet64_adm --config.data_dir=DIR

`dataset` is TFDS's `imagenet_resized/64x64`. 540,000 steps of batch 2048 on a pod; the paper reports FID 2.07 with 250
steps and classifier guidance. Result: not run.
"""

from functools import partial

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxgen import ema
from jaxgen.config_parts import balanced_experiment, source_or_noise
from jaxgen.experiment import Experiment
from jaxgen.models import unet
from jaxgen.models.layers import remat
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation, posterior, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'imagenet_resized/64x64',  # or folder:PATH, ...; synthetic is noise, to time a step
      'resolution': 64,
      'data_dir': '',
      'steps': 540_000,
      'batch_size': 2048,
      'mesh': {'data': 1, 'fsdp': -1, 'tensor': 1},
      'dtype': 'bfloat16',
      'remat': 'full',
      'learning_rate': 3e-4,
      'weight_decay': 0.05,
      'ema': 0.9999,
      'clip_norm': 1.0,
      'flip': False,
      'sampling': {'steps': 250, 'batch_size': 256},
      'samples': {'every': 20_000, 'num': 64},
      'fid': {'every': 100_000, 'num_samples': 50_000, 'batch_size': 128},  # num_samples=0 for none
      'held_out': {'every': 20_000, 'num': 1024, 'batch_size': 128},  # the loss on the validation or test split
      'log_every': 100,
      'checkpoint': {'every': 5000, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  dataset = source_or_noise(c, num_classes=1000)
  objective = diffusion(
    unet.adm(64, num_classes=dataset.num_classes, dtype=jnp.dtype(c.dtype), remat=remat.policy(c.remat)),
    vp_cosine(1000),
    shape=(c.resolution, c.resolution, 3),
    parameterisation=parameterisation.learned_variance(parameterisation.eps),
    times=times.discrete(1000),
    sampler=Sampler(partial(ddpm, variance=posterior.learned), grids.spaced(c.sampling.steps, 1000)),
    guide=(clip(),),
    conditioner=labels(dataset.num_classes),
  )
  return balanced_experiment(
    c,
    objective,
    dataset,
    optimizer=optax.adamw(c.learning_rate, weight_decay=c.weight_decay),
    decay=ema.constant(c.ema),
    sampler=f'DDPM, {c.sampling.steps} steps, learned variance',
  )
