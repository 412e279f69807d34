"""The smallest config of a run that draws by denoising: tiny_config's data, and a network of one number for a class."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxgen.experiment import Experiment
from jaxgen.objectives.base import Objective
from jaxgen.objectives.conditioning import Conditioner, Field
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.sampler import Sampler
from tests import tiny_config

PROCESS, STEPS = vp_cosine(), 8


class Pull(nn.Module):
  """x0 = a share of x_t, the less the more noise there is, and the class's level."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    level = self.param('level', nn.initializers.constant(0.2), (2,))
    share = 0.9 * jnp.cos(t * (jnp.pi / 2000))
    return share[:, None, None, None] * x + level[cond['label']][:, None, None, None]


def objective() -> Objective:
  return diffusion(
    Pull(),
    PROCESS,
    shape=(4, 4, 3),
    parameterisation=partial(parameterisation.x0, margin=0.05),
    times=times.uniform(),
    sampler=Sampler(ddim, grids.uniform(STEPS)),
    conditioner=Conditioner({'label': Field(0)}),
  )


def get_config() -> ConfigDict:
  return tiny_config.get_config()


def build(c: ConfigDict) -> Experiment:
  return tiny_config.build(c)._replace(objective=objective(), evaluators=())
