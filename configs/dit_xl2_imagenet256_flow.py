"""DiT-XL/2 by flow matching on ImageNet latents: the linear path and velocity of SiT (Ma et al. 2024).

  jaxgen train --config dit_xl2_imagenet256_flow --config.autoencoder=VAE

Hardware, data and VAE as dit_xl2_imagenet256. The paper reports FID-50k 9.35 unguided and 2.15 with guidance 1.5, both
by an ODE. Result: not run.
"""

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxgen.config_parts import imagenet_experiment, latents_or_noise
from jaxgen.data.loader import Loader
from jaxgen.experiment import Experiment
from jaxgen.models import dit
from jaxgen.models.layers import remat
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.latent import latent
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.heun import heun
from jaxgen.samplers.sampler import Sampler

NUM_CLASSES = 1000
SHOWN = (207, 360, 387, 974, 88, 979, 417, 279)  # classes in the grid, as in DiT's figures


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'imagenet2012',  # the images that FID compares with; or synthetic
      'latents': 'imagenet256_latents',
      'autoencoder': 'sd-vae-ft-ema',
      'resolution': 256,
      'data_dir': '',  # folder of both datasets; empty for jaxgen's own
      'steps': 7_000_000,
      'batch_size': 256,
      'accumulate': 1,
      'mesh': {'data': 1, 'fsdp': -1, 'sequence': 1, 'tensor': 1},
      'size': 'XL/2',
      'dtype': 'bfloat16',
      'remat': 'dots',  # the fastest that fits by `jaxgen plan --fit`; full on v6e, whose memory is the limit
      'drop_rate': 0.1,
      'learning_rate': 1e-4,
      'ema': 0.9999,
      'sampling': {'name': 'Heun', 'steps': 125, 'scale': 1.5, 'batch_size': 256},
      'samples': {'every': 50_000},
      'fid': {'every': 500_000, 'num_samples': 50_000, 'batch_size': 256},  # num_samples=0 for none
      'held_out': {'every': 50_000, 'num': 1024, 'batch_size': 256},  # the loss on the validation split
      'log_every': 100,
      'checkpoint': {'every': 5000, 'keep': 2, 'keep_every': 100_000},
    }
  )


def build(c: ConfigDict) -> Experiment:
  dataset, loaded = latents_or_noise(c, network='sd-f8', num_classes=NUM_CLASSES)
  data = Loader(dataset, batch_size=c.batch_size, seed=c.seed)
  objective = diffusion(
    dit.dit(c.size, num_classes=NUM_CLASSES, dtype=jnp.dtype(c.dtype), remat=remat.policy(c.remat)),
    rectified_flow(),
    shape=data.spec['image'].shape[1:],
    parameterisation=parameterisation.velocity,
    times=times.uniform(),
    sampler=Sampler(heun, grids.uniform(c.sampling.steps)),
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
    optimizer=optax.adamw(c.learning_rate, weight_decay=0.0),
  )
