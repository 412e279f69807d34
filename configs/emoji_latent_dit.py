"""A DiT on the emoji as 8x8 latents of emoji_vae, by flow matching; decoded for grids and FID only.

  jaxgen train --config emoji_latent_dit        # after emoji_vae's three commands

The latents must be those of the autoencoder that decodes.

Result, seed 0, two CPU cores, 15 minutes beside other programs: fid_256 161.2 at step 600 and 154.1 at 1,200, where
emoji_dit's, of pixels, is 187.7 after as many images and as many tokens. Faces, signs and food have shape; small things
are smeared.
"""

from ml_collections import ConfigDict

from jaxgen.config_parts import latent_experiment, muon_and_adam
from jaxgen.data.datasets.latents import latents
from jaxgen.data.loader import Loader
from jaxgen.data.sources import fits_in_memory, source
from jaxgen.experiment import Experiment
from jaxgen.models.dit import DiT
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.latent import latent
from jaxgen.pretrained import autoencoder
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'emoji32',  # the images that FID compares with; or folder:PATH, ...: jaxgen/data/sources.py
      'resolution': 0,  # side of the images; 0 for images as they are
      'latents': 'emoji32_latents',
      'autoencoder': 'runs/emoji_vae/autoencoder',
      'steps': 1200,
      'batch_size': 32,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'patch': 1, 'depth': 5, 'width': 128, 'heads': 2},
      'drop_rate': 0.1,
      'optimizer': {'muon': 0.02, 'adam': 2e-3, 'b2': 0.95, 'warmup': 20},  # learning rates: of matrices, of the rest
      'ema': 0.99,
      'clip_norm': 1.0,
      'sampling': {'steps': 20, 'scale': 2.0, 'batch_size': 16},
      'samples': {'every': 300, 'per_class': 8},
      'fid': {'every': 600, 'num_samples': 256, 'batch_size': 16},  # num_samples=0 for none
      'held_out': {'every': 300, 'num': 256, 'batch_size': 16},  # the loss on the test split of `dataset`
      'log_every': 50,
      'checkpoint': {'every': 300, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  images, loaded = source(c.dataset, resolution=c.resolution), autoencoder.load(c.autoencoder)
  encoded = latents(c.latents, autoencoder=loaded.hash)
  data = Loader(encoded, batch_size=c.batch_size, seed=c.seed, cache=fits_in_memory(encoded))
  objective = diffusion(
    DiT(num_classes=images.num_classes, **c.model),
    rectified_flow(),
    shape=data.spec['image'].shape[1:],
    parameterisation=parameterisation.velocity,
    times=times.logit_normal(draw=times.stratified),
    sampler=Sampler(euler, grids.uniform(c.sampling.steps)),
    guide=(classifier_free(c.sampling.scale),),
    conditioner=labels(images.num_classes, drop_rate=c.drop_rate),
    limit=None,
  )
  optimizer = muon_and_adam(c.optimizer, steps=c.steps)
  return latent_experiment(c, latent(objective, loaded.net), data, images=images, loaded=loaded, optimizer=optimizer)
