"""LDM-4 on ImageNet at 256x256 (Rombach et al. 2022): a U-Net on 64x64x3 latents of VQ-f4, conditioned on the class.

  jaxgen data encode --data imagenet2012 --size 256 --autoencoder VQ_F4 --name imagenet256_vq_f4_latents
  jaxgen train --config imagenet256_ldm --config.autoencoder=VQ_F4 --config.mesh.fsdp=-1 --config.mesh.data=1

VQ_F4 is the folder of the published VQModel in diffusers' layout. The paper reports FID 3.60 with guidance 1.5 after
178,000 steps of batch 1200. Differs from the paper's: the class modulates the blocks as time does, where theirs is a
token that transformers in the blocks read.

Result: not run.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen import ema, sharding
from jaxgen.checkpoint import Policy
from jaxgen.data.datasets.latents import latents
from jaxgen.data.loader import Loader
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.samples import samples
from jaxgen.experiment import Experiment
from jaxgen.models.layers import remat
from jaxgen.models.unet import IDDPM, UNet
from jaxgen.objectives.diffusion import diffusion
from jaxgen.objectives.latent import latent
from jaxgen.pretrained import autoencoder
from jaxgen.processes import parameterisation, times
from jaxgen.processes.vp import from_betas
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.guidance import guided

NUM_CLASSES = 1000
SHOWN = (1, 88, 130, 207, 250, 270, 291, 388, 417, 483, 555, 604, 817, 933, 963, 980)  # classes in the grid


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'latents': 'imagenet256_vq_f4_latents',
      'data_dir': '',  # of the latents; empty for jaxgen's own folder
      'autoencoder': 'vq-f4',
      'steps': 178_000,
      'batch_size': 1200,
      'accumulate': 1,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'width': 192, 'multipliers': (1, 2, 3, 5), 'blocks': 2, 'attention': (1, 2, 3), 'head_size': 32},
      'dtype': 'bfloat16',
      'remat': 'none',
      'drop_rate': 0.1,
      'learning_rate': 1e-4,
      'ema': 0.9999,
      'sampling': {'steps': 250, 'scale': 1.5, 'batch_size': 16},
      'samples': {'every': 5000},
      'log_every': 100,
      'checkpoint': {'every': 5000, 'keep': 2, 'keep_every': 50_000},
    }
  )


def build(c: ConfigDict) -> Experiment:
  mesh, dtype = sharding.make_mesh(**c.mesh), jnp.dtype(c.dtype)
  loaded = autoencoder.load(c.autoencoder, dtype=dtype)
  dataset = latents(c.latents, autoencoder=loaded.hash, data_dir=c.data_dir or None)
  data = Loader(dataset, batch_size=c.batch_size, seed=c.seed)
  process = from_betas(np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2)
  null = {'label': NUM_CLASSES}
  net = UNet(num_classes=NUM_CLASSES, style=IDDPM, dtype=dtype, remat=remat.policy(c.remat), **c.model)
  learned = diffusion(
    net,
    process,
    shape=data.spec['image'].shape[1:],
    parameterisation=parameterisation.eps(process),
    times=times.discrete(1000),
    sampler=partial(ddim, process=process, times=grids.spaced(c.sampling.steps, 1000)),
    guide=partial(guided, null=null, scale=c.sampling.scale),
    null=null,
    drop_rate=c.drop_rate,
    limit=None,
  )
  objective = latent(learned, loaded.net)
  generate = make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size)
  cond = {'label': np.asarray(SHOWN, np.int32)}
  return Experiment(
    objective=objective,
    optimizers={'net': optax.adamw(c.learning_rate, weight_decay=0.01)},
    averages={'net': ema.Average('net', ema.constant(c.ema))},
    data=data,
    steps=c.steps,
    mesh=mesh,
    seed=c.seed,
    frozen={'autoencoder': loaded.frozen},
    accumulate=c.accumulate,
    log_every=c.log_every,
    checkpoints=Policy(**c.checkpoint),
    evaluators=(samples(generate, mesh=mesh, cond=cond, num=len(SHOWN), every=c.samples.every),),
  )
