"""Objectives: training methods, each a NamedTuple of pure functions that the train step runs (base.py).

from jaxgen.objectives.diffusion.diffusion import diffusion      # or vdm.vdm
from jaxgen.objectives.few_step.mean_flow import mean_flow       # or consistency, distillation, shortcut, scm
from jaxgen.objectives.gan.gan import gan
from jaxgen.objectives.autoencoder.autoencoder import autoencoder
from jaxgen.objectives.latent import latent                      # any of them in an autoencoder's latents
from jaxgen.objectives.conditioning import Conditioner, labels
"""
