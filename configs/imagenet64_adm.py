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
from jaxgen.data.datasets.tfds_dataset import tfds_dataset
from jaxgen.experiment import Experiment
from jaxgen.models import unet
from jaxgen.models.layers import remat
from jaxgen.objectives.base import Objective
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation, posterior, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from jaxgen.samplers.ddpm import ddpm

SHAPE, NUM_CLASSES = (64, 64, 3), 1000


def get_config() -> ConfigDict:
  c = cifar10_ddpm.get_config()
  c.dataset = 'imagenet_resized/64x64'
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


def objective(c: ConfigDict) -> Objective:
  process = vp_cosine(1000)
  return diffusion(
    unet.adm(64, num_classes=NUM_CLASSES, dtype=jnp.dtype(c.dtype), remat=remat.policy(c.remat)),
    process,
    shape=SHAPE,
    parameterisation=parameterisation.learned_variance(parameterisation.eps(process)),
    times=times.discrete(1000),
    sampler=partial(
      ddpm, process=process, times=grids.spaced(c.sampling.steps, 1000), variance=posterior.learned, clip=1.0
    ),
    null={'label': NUM_CLASSES},
  )


def build(c: ConfigDict) -> Experiment:
  if c.dataset == 'synthetic':
    dataset = synthetic(SHAPE, num_classes=NUM_CLASSES)
  else:
    dataset = tfds_dataset(c.dataset, data_dir=c.data_dir or None)
  return cifar10_ddpm.experiment(
    c,
    objective(c),
    dataset,
    optimizer=optax.adamw(c.learning_rate, weight_decay=c.weight_decay),
    average=ema.constant(c.ema),
    sampler=f'DDPM, {c.sampling.steps} steps, learned variance',
  )
