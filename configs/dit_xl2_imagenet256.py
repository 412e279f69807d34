"""DiT-XL/2 on ImageNet at 256x256, by the paper's recipe (Peebles & Xie 2023), on latents of Stable Diffusion's VAE.

  jaxgen plan --config dit_xl2_imagenet256 --topology v5e:4x4        # needs neither data nor weights
  jaxgen data prepare imagenet2012                                   # by TFDS, from ImageNet's archives
  jaxgen data encode --data imagenet2012 --size 256 --autoencoder VAE --name imagenet256_latents
  jaxgen train --config dit_xl2_imagenet256 --config.autoencoder=VAE

VAE is the folder of sd-vae-ft-ema, on a disk or in a bucket: the paper's numbers are of that decoder. With `dataset`
`synthetic` there is noise for latents, and no sampling: to plan a run, or to time its step, without any of these.

7 million steps of batch 256 are for a pod; the paper took a TPU v3-256, and reports FID-50k 9.62 unguided
(`--config.sampling.scale=1`) and 2.27 with guidance 1.5. As there: 250 DDPM steps, uniform labels, against all
of the training images, resized as ADM's. Differs from its released code, which guides three of the four channels.

Result: not run.
"""

from functools import partial

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
from jaxgen.processes import parameterisation, posterior, times
from jaxgen.processes.vp import vp_linear
from jaxgen.samplers import grids
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler

NUM_CLASSES = 1000
SHOWN = (207, 360, 387, 974, 88, 979, 417, 279)  # classes in the grid, as in the paper's figures


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
      'mesh': {'data': 1, 'fsdp': -1, 'sequence': 1, 'tensor': 1, 'dcn': {'data': -1, 'fsdp': 1}},
      'size': 'XL/2',
      'dtype': 'bfloat16',
      'remat': 'dots',  # the fastest that fits by `jaxgen plan --fit`; full on v6e, whose memory is the limit
      'drop_rate': 0.1,
      'learning_rate': 1e-4,
      'ema': 0.9999,
      'sampling': {'name': 'DDPM', 'steps': 250, 'scale': 1.5, 'batch_size': 256},
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
  options = {'dtype': jnp.dtype(c.dtype), 'remat': remat.policy(c.remat)}
  objective = diffusion(
    dit.dit(c.size, num_classes=NUM_CLASSES, learn_sigma=True, **options),
    vp_linear(1000),
    shape=data.spec['image'].shape[1:],
    parameterisation=parameterisation.learned_variance(parameterisation.eps),
    times=times.discrete(1000),
    sampler=Sampler(partial(ddpm, variance=posterior.learned), grids.spaced(c.sampling.steps, 1000)),
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
