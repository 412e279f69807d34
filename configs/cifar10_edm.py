"""EDM on CIFAR-10 with class labels: DDPM++, preconditioning, 18 steps of Heun (Karras et al. 2022).

  jaxgen train --config cifar10_edm --config.data_dir=DIR

CIFAR-10 is TFDS's `cifar10`. 200 million images in batches of 512 took the paper about two days on 8 V100; it reports
FID 1.79 with augmentations that are told to the network, which are not done here. Result: not run.
"""

from functools import partial

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from configs import cifar10_ddpm
from jaxgen import ema
from jaxgen.experiment import Experiment
from jaxgen.models.edm_unet import ddpmpp
from jaxgen.objectives.base import Objective
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation
from jaxgen.processes.edm import edm, log_normal
from jaxgen.samplers import grids
from jaxgen.samplers.heun import heun
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  c = cifar10_ddpm.get_config()
  c.batch_size = 512
  c.steps = 200_000_000 // c.batch_size
  c.learning_rate = 1e-3
  c.warmup = 10_000_000 // c.batch_size
  c.ema = 500_000.0  # half-life in images
  c.sampling.steps = 18
  c.checkpoint.every = 2000
  return c


def objective(c: ConfigDict, num_classes: int) -> Objective:
  process = edm()
  return diffusion(
    ddpmpp(num_classes=num_classes, dtype=jnp.dtype(c.dtype)),
    process,
    shape=(c.resolution, c.resolution, 3),
    parameterisation=partial(parameterisation.preconditioned, data_std=0.5),
    times=log_normal(),
    sampler=Sampler(heun, grids.uniform(c.sampling.steps)),
    conditioner=labels(num_classes),
  )


def build(c: ConfigDict) -> Experiment:
  dataset = cifar10_ddpm.images(c, num_classes=10)
  return cifar10_ddpm.experiment(
    c,
    objective(c, dataset.num_classes),
    dataset,
    optimizer=optax.adam(optax.linear_schedule(0.0, c.learning_rate, c.warmup)),
    average=ema.half_life(c.ema, batch_size=c.batch_size, ramp=0.05),
    sampler=f'Heun, {c.sampling.steps} steps',
  )
