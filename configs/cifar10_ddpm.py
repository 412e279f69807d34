"""DDPM on CIFAR-10, unconditional, by the paper's recipe (Ho et al. 2020).

  jaxgen train --config cifar10_ddpm --config.data_dir=DIR

CIFAR-10 is TFDS's `cifar10`. 800,000 steps of batch 128 on 8 TPU v3 cores took the paper 10.6 hours; it reports FID
3.17. Result: not run.
"""

from functools import partial

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxgen import ema
from jaxgen.config_parts import balanced_experiment, source_or_noise
from jaxgen.experiment import Experiment
from jaxgen.models import unet
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation, posterior, times
from jaxgen.processes.vp import vp_linear
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'cifar10',  # or folder:PATH, ... (jaxgen/data/sources.py); synthetic is noise, to time a step
      'resolution': 32,
      'data_dir': '',
      'steps': 800_000,
      'batch_size': 128,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'dtype': 'float32',
      'learning_rate': 2e-4,
      'warmup': 5000,
      'ema': 0.9999,
      'clip_norm': 1.0,
      'flip': True,
      'sampling': {'steps': 1000, 'batch_size': 256},
      'samples': {'every': 20_000, 'num': 64},
      'fid': {'every': 100_000, 'num_samples': 50_000, 'batch_size': 128},  # num_samples=0 for none
      'held_out': {'every': 20_000, 'num': 1024, 'batch_size': 128},  # the loss on the validation or test split
      'log_every': 100,
      'checkpoint': {'every': 5000, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  objective = diffusion(
    unet.ddpm('cifar10', dtype=jnp.dtype(c.dtype)),
    vp_linear(1000),
    shape=(c.resolution, c.resolution, 3),
    parameterisation=parameterisation.eps,
    times=times.discrete(1000),
    sampler=Sampler(partial(ddpm, variance=posterior.large), grids.spaced(c.sampling.steps, 1000)),
    guide=(clip(),),
  )
  return balanced_experiment(
    c,
    objective,
    source_or_noise(c, num_classes=10),
    optimizer=optax.adam(optax.linear_schedule(0.0, c.learning_rate, c.warmup)),
    decay=ema.warmup(c.ema),
    sampler=f'DDPM, {c.sampling.steps} steps, large variance',
  )
