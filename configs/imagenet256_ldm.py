"""LDM-4 on ImageNet at 256x256 (Rombach et al. 2022): a U-Net on 64x64x3 latents of VQ-f4, conditioned on the class.

  jaxgen data encode --data imagenet2012 --size 256 --autoencoder VQ_F4 --name imagenet256_vq_f4_latents
  jaxgen train --config imagenet256_ldm --config.autoencoder=VQ_F4 --config.mesh.fsdp=-1 --config.mesh.data=1

VQ_F4 is the folder of the published VQModel in diffusers' layout, with `"scaling_factor": 1.0` in its config.json: the
paper does not scale these latents, and where the file says nothing diffusers takes Stable Diffusion's number. It
reports FID-50k 3.60 with guidance 1.5 after 178,000 steps of batch 1200. Differs from it: the class modulates the
blocks as time does, where theirs is a token that transformers in the blocks read. With `dataset` `synthetic` noise
stands for latents, as in dit_xl2_imagenet256.

Result: not run.
"""

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen.config_parts import imagenet_experiment, latents_or_noise
from jaxgen.data.loader import Loader
from jaxgen.experiment import Experiment
from jaxgen.models.layers import remat
from jaxgen.models.unet import IDDPM, UNet
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.latent import latent
from jaxgen.processes import parameterisation, times
from jaxgen.processes.vp import from_betas
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler

NUM_CLASSES = 1000
SHOWN = (207, 360, 387, 974, 88, 979, 417, 279)  # classes in the grid


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'imagenet2012',  # the images that FID compares with; or synthetic
      'latents': 'imagenet256_vq_f4_latents',
      'autoencoder': 'vq-f4',
      'resolution': 256,
      'data_dir': '',  # folder of both datasets; empty for jaxgen's own
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
      'sampling': {'name': 'DDIM', 'steps': 250, 'scale': 1.5, 'batch_size': 128},
      'samples': {'every': 5000},
      'fid': {'every': 50_000, 'num_samples': 50_000, 'batch_size': 256},  # num_samples=0 for none
      'held_out': {'every': 50_000, 'num': 1024, 'batch_size': 256},  # the loss on the validation split
      'log_every': 100,
      'checkpoint': {'every': 5000, 'keep': 2, 'keep_every': 50_000},
    }
  )


def build(c: ConfigDict) -> Experiment:
  dataset, loaded = latents_or_noise(c, network='vq-f4', num_classes=NUM_CLASSES)
  data = Loader(dataset, batch_size=c.batch_size, seed=c.seed)
  options = {'style': IDDPM, 'dtype': jnp.dtype(c.dtype), 'remat': remat.policy(c.remat)}
  objective = diffusion(
    UNet(num_classes=NUM_CLASSES, **options, **c.model),
    from_betas(np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2),
    shape=data.spec['image'].shape[1:],
    parameterisation=parameterisation.eps,
    times=times.discrete(1000),
    sampler=Sampler(ddim, grids.spaced(c.sampling.steps, 1000)),
    guide=(classifier_free(c.sampling.scale),),
    conditioner=labels(NUM_CLASSES, drop_rate=c.drop_rate),
    limit=None,
  )
  return imagenet_experiment(
    c,
    latent(objective, loaded.net),
    data,
    shown=SHOWN,
    loaded=loaded,
    optimizer=optax.adamw(c.learning_rate, weight_decay=0.01),
  )
