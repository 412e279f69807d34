"""A GAN of small MLPs on 25 Gaussians in a 5 x 5 grid: which games cover every mode?

  jaxgen train --config gaussians_gan --config.loss=relativistic --config.r1=0.1 --config.r2=0.1
  pytest tests/test_gan_modes.py -m slow -s    # the same steps in one program each, and a table

Two CPU cores, seed 0. Results: modes covered of 25 and share of good samples after 5,000 steps: minimax 11 and 0.42,
non-saturating 17 and 0.78, hinge 17 and 0.53, least squares 19 and 0.67, Wasserstein clipped 18 and 0.20 (after 1,000
of its generator), with a gradient penalty 25 and 0.83. With R1 25 and 0.78, R1 and R2 25 and 0.71, relativistic with
both 25 and 0.64, spectral norms 25 and 0.85 (non-saturating) and 0.72 (hinge). Games without a penalty are
chaotic: minimax covered 11, 12 and 18 in runs that differ in rounding alone.

With a discriminator at a fifth of the generator's rate (2e-4, b1 0.5, b2 0.999; about Metz et al.'s) minimax and the
non-saturating loss chase one mode: 1 of 25 after 8,000 steps of 256. Minibatch discrimination keeps all (4 kernels,
12,000 steps of 128: 25 and 0.96), and so do five unrolled steps (8,000 of 256: 25 and 0.94; 12,000 of 64: 20 and 0.90).
"""

from functools import partial

import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen import sharding
from jaxgen.checkpoint import Policy
from jaxgen.data.datasets.gaussians import STD, centres, gaussians25
from jaxgen.data.loader import Loader
from jaxgen.ema import Average, constant
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.modes import modes
from jaxgen.experiment import Experiment, chosen
from jaxgen.metrics.modes import nearest_mode
from jaxgen.models.mlp import MLPDiscriminator, MLPGenerator
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan import regularizers
from jaxgen.objectives.gan.gan import Unroll, gan
from jaxgen.optimizers import clipped

LOSSES = {
  'minimax': gan_losses.minimax,
  'non_saturating': gan_losses.non_saturating,
  'hinge': gan_losses.hinge,
  'least_squares': gan_losses.least_squares,
  'wasserstein': gan_losses.wasserstein,
  'relativistic': gan_losses.relativistic,
}


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'steps': 5000,
      'batch_size': 256,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'latent': 16,
      'loss': 'minimax',
      'r1': 0.0,  # gammas and weights; 0 for none
      'r2': 0.0,
      'gradient_penalty': 0.0,
      'clip': 0.0,  # largest weight of the discriminator, for Wasserstein
      'generator_every': 1,
      'unroll': 0,  # steps of the discriminator that the generator looks ahead
      'generator': {'width': 128, 'depth': 3},
      'discriminator': {'width': 128, 'depth': 3, 'spectral': False, 'kernels': 0},
      'optimizer': {'generator': 1e-3, 'discriminator': 1e-3, 'b1': 0.0, 'b2': 0.99, 'decay': False},  # decay: to 0
      'ema': 0.99,
      'modes': {'num': 2500, 'every': 2000},
      'log_every': 500,
    }
  )


def build(c: ConfigDict) -> Experiment:
  mesh = sharding.make_mesh(**c.mesh)
  penalties = [getattr(regularizers, name)(c[name]) for name in ('r1', 'r2', 'gradient_penalty') if c[name]]
  o = c.optimizer

  def adam(rate: float) -> optax.GradientTransformation:
    decayed = optax.cosine_decay_schedule(rate, c.steps) if o.decay else rate
    return optax.adam(decayed, b1=o.b1, b2=o.b2, eps_root=1e-12 if c.unroll else 0.0)

  of_generator, of_discriminator = adam(o.generator), adam(o.discriminator)
  objective = gan(
    MLPGenerator((1, 1, 2), **c.generator),
    MLPDiscriminator(**c.discriminator),
    latent=c.latent,
    loss=chosen(LOSSES, c.loss, field='loss'),
    discriminator_penalties=penalties,
    generator_every=c.generator_every,
    unroll=Unroll(c.unroll, of_discriminator) if c.unroll else None,
  )
  generate = make_generate(objective.sample, mesh=mesh, batch_size=-(-c.modes.num // mesh.size) * mesh.size)
  nearest = partial(nearest_mode, centres=centres(), radius=4 * STD)
  return Experiment(
    objective=objective,
    optimizers={
      'generator': of_generator,
      'discriminator': clipped(of_discriminator, c.clip) if c.clip else of_discriminator,
    },
    averages={'generator': Average('generator', constant(c.ema))},
    data=Loader(gaussians25('train'), batch_size=c.batch_size, seed=c.seed, cache=True),
    steps=c.steps,
    mesh=mesh,
    seed=c.seed,
    log_every=c.log_every,
    checkpoints=Policy(every=c.steps, keep=1),
    evaluators=(
      modes(
        generate,
        lambda context, images: nearest(np.reshape(images, (-1, 2))),
        mesh=mesh,
        num_modes=len(centres()),
        cond={},
        num=c.modes.num,
        every=c.modes.every,
      ),
    ),
  )
