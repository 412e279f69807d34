"""ADM on ImageNet at 64x64 with class labels: cosine schedule, learned variance (Dhariwal & Nichol 2021).

  jaxgen train --config imagenet64_adm --config.data_dir=DIR

`dataset` is TFDS's `imagenet_resized/64x64`. 540,000 steps of batch 2048 on a pod; the paper reports FID 2.07 with 250
steps and classifier guidance. Result: not run.
"""

from functools import partial

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from configs import cifar10_ddpm
from jaxgen import ema
from jaxgen.data.datasets.synthetic import synthetic
from jaxgen.data.sources import source
from jaxgen.experiment import Experiment
from jaxgen.models import unet
from jaxgen.models.layers import remat
from jaxgen.objectives.base import Objective
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation, posterior, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.sampler import Sampler

NUM_CLASSES = 1000


def get_config() -> ConfigDict:
  c = cifar10_ddpm.get_config()
  c.dataset, c.resolution = 'imagenet_resized/64x64', 64
  c.steps = 540_000
  c.batch_size = 2048
  c.mesh = ConfigDict({'data': 1, 'fsdp': -1, 'tensor': 1})
  c.dtype = 'bfloat16'
  c.remat = 'full'
  c.learning_rate = 3e-4
  c.weight_decay = 0.05
  c.flip = False
  c.sampling.steps = 250
  return c


def objective(c: ConfigDict, num_classes: int) -> Objective:
  process = vp_cosine(1000)
  return diffusion(
    unet.adm(64, num_classes=num_classes, dtype=jnp.dtype(c.dtype), remat=remat.policy(c.remat)),
    process,
    shape=(c.resolution, c.resolution, 3),
    parameterisation=parameterisation.learned_variance(parameterisation.eps),
    times=times.discrete(1000),
    sampler=Sampler(partial(ddpm, variance=posterior.learned), grids.spaced(c.sampling.steps, 1000)),
    guide=(clip(),),
    conditioner=labels(num_classes),
  )


def build(c: ConfigDict) -> Experiment:
  if c.dataset == 'synthetic':
    dataset = synthetic((c.resolution, c.resolution, 3), num_classes=NUM_CLASSES)
  else:
    dataset = source(c.dataset, resolution=c.resolution, data_dir=c.data_dir)
  return cifar10_ddpm.experiment(
    c,
    objective(c, dataset.num_classes),
    dataset,
    optimizer=optax.adamw(c.learning_rate, weight_decay=c.weight_decay),
    average=ema.constant(c.ema),
    sampler=f'DDPM, {c.sampling.steps} steps, learned variance',
  )
