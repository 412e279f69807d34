"""DDPM on CIFAR-10, unconditional, by the paper's recipe (Ho et al. 2020).

  jaxgen train --config cifar10_ddpm --config.data_dir=DIR

CIFAR-10 is TFDS's `cifar10`. 800,000 steps of batch 128 on 8 TPU v3 cores took the paper 10.6 hours; it reports FID
3.17. Result: not run.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen import ema, sharding
from jaxgen.checkpoint import Policy
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.synthetic import synthetic
from jaxgen.data.loader import Loader
from jaxgen.data.sources import source
from jaxgen.evaluators.fid import fid
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.samples import samples
from jaxgen.experiment import Experiment
from jaxgen.models import unet
from jaxgen.objectives.base import Objective
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
      'log_every': 100,
      'checkpoint': {'every': 5000, 'keep': 2},
    }
  )


def objective(c: ConfigDict) -> Objective:
  process = vp_linear(1000)
  return diffusion(
    unet.ddpm('cifar10', dtype=jnp.dtype(c.dtype)),
    process,
    shape=(c.resolution, c.resolution, 3),
    parameterisation=parameterisation.eps,
    times=times.discrete(1000),
    sampler=Sampler(partial(ddpm, variance=posterior.large), grids.spaced(c.sampling.steps, 1000)),
    guide=(clip(),),
  )


def images(c: ConfigDict, *, num_classes: int) -> Dataset:
  if c.dataset == 'synthetic':
    return synthetic((c.resolution, c.resolution, 3), num_classes=num_classes)
  return source(c.dataset, resolution=c.resolution, data_dir=c.data_dir)


def build(c: ConfigDict) -> Experiment:
  return experiment(
    c,
    objective(c),
    images(c, num_classes=10),
    optimizer=optax.adam(optax.linear_schedule(0.0, c.learning_rate, c.warmup)),
    average=ema.warmup(c.ema),
    sampler=f'DDPM, {c.sampling.steps} steps, large variance',
  )


def experiment(
  c: ConfigDict, learned: Objective, dataset: Dataset, *, optimizer: optax.GradientTransformation, average, sampler: str
) -> Experiment:
  mesh = sharding.make_mesh(**c.mesh)
  data = Loader(dataset, batch_size=c.batch_size, seed=c.seed, flip=c.flip)
  generate = make_generate(learned.sample, mesh=mesh, batch_size=c.sampling.batch_size)
  count = dataset.num_classes
  in_turn = lambda num: {'label': np.arange(num, dtype=np.int32) % count} if count else {}  # noqa: E731
  grid = samples(generate, mesh=mesh, cond=in_turn(c.samples.num), num=c.samples.num, every=c.samples.every)
  measures = ()
  if c.fid.num_samples:
    protocol = {'labels': 'as many of each class', 'sampler': sampler, 'guidance': 1.0}
    measures = (fid(generate, dataset, mesh=mesh, cond=in_turn(c.fid.num_samples), protocol=protocol, **c.fid),)
  return Experiment(
    objective=learned,
    optimizers={'net': optimizer},
    averages={'net': ema.Average('net', average)},
    data=data,
    steps=c.steps,
    mesh=mesh,
    seed=c.seed,
    clip_norm=c.clip_norm,
    log_every=c.log_every,
    checkpoints=Policy(**c.checkpoint),
    evaluators=(grid, *measures),
  )
