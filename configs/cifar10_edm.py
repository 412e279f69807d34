"""EDM on CIFAR-10 with class labels: DDPM++, preconditioning, 18 steps of Heun, 35 network calls (Karras et al. 2022).

  jaxgen train --config cifar10_edm --config.data_dir=DIR

CIFAR-10 is TFDS's `cifar10`. 200 million images in batches of 512 took the paper about two days on 8 V100; it reports
FID 1.79 with augmentations that are inputs of the network, which are not used here. Result: not run.
"""

from functools import partial

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxgen import ema
from jaxgen.config_parts import balanced_experiment, source_or_noise
from jaxgen.experiment import Experiment
from jaxgen.models.edm_unet import ddpmpp
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation
from jaxgen.processes.edm import edm, log_normal
from jaxgen.samplers import grids
from jaxgen.samplers.denoised import denoised
from jaxgen.samplers.heun import heun
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'cifar10',  # or folder:PATH, ... (jaxgen/data/sources.py); synthetic is noise, to time a step
      'resolution': 32,
      'data_dir': '',
      'steps': 200_000_000 // 512,
      'batch_size': 512,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'dtype': 'float32',
      'learning_rate': 1e-3,
      'warmup': 10_000_000 // 512,
      'ema': 500_000.0,  # half-life in images
      'clip_norm': 1.0,
      'flip': True,
      'sampling': {'steps': 18, 'batch_size': 256},
      'samples': {'every': 20_000, 'num': 64},
      'fid': {'every': 100_000, 'num_samples': 50_000, 'batch_size': 128},  # num_samples=0 for none
      'held_out': {'every': 20_000, 'num': 1024, 'batch_size': 128},  # the loss on the validation or test split
      'log_every': 100,
      'checkpoint': {'every': 2000, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  dataset = source_or_noise(c, num_classes=10)
  objective = diffusion(
    ddpmpp(num_classes=dataset.num_classes, dtype=jnp.dtype(c.dtype)),
    edm(),
    shape=(c.resolution, c.resolution, 3),
    parameterisation=partial(parameterisation.preconditioned, data_std=0.5),
    times=log_normal(),
    sampler=Sampler(denoised(heun), grids.uniform(c.sampling.steps - 1)),
    conditioner=labels(dataset.num_classes),
  )
  return balanced_experiment(
    c,
    objective,
    dataset,
    optimizer=optax.adam(optax.linear_schedule(0.0, c.learning_rate, c.warmup)),
    decay=ema.half_life(c.ema, batch_size=c.batch_size, ramp=0.05),
    sampler=f'Heun, {c.sampling.steps} steps',
  )
