"""A student of one step as a GAN's generator: the same images as its sampler's, and a stage that goes on from it."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import ema
from jaxgen.objectives import gan_losses
from jaxgen.objectives.adversarial import OneStep, as_generator
from jaxgen.objectives.diffusion import diffusion
from jaxgen.objectives.gan import gan
from jaxgen.processes import parameterisation, times
from jaxgen.processes.edm import edm
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.train import train
from jaxgen.train_state import sampling_params
from tests import toys
from tests.analytic import PROCESSES

SHAPE = (2, 4, 1)
COSINE = PROCESSES['vp_cosine']


class Net(nn.Module):
  """Sees noise, time and label."""

  @nn.compact
  def __call__(self, x, t, cond, *, train=False):
    if train:
      self.make_rng('dropout')  # of which a generator has none
    weight = self.param('weight', nn.initializers.constant(0.4), ())
    return weight * x + 0.001 * sum(cond.values(), t)[:, None, None, None]


class Critic(nn.Module):
  @nn.compact
  def __call__(self, images, cond, *, train=False):
    return nn.Dense(1)(images.reshape(len(images), -1))[:, 0]


@pytest.mark.parametrize('process', [COSINE, edm(sigma_min=1e-9)], ids=['vp', 'edm'])
@pytest.mark.parametrize('kind', [parameterisation.x0, parameterisation.v, parameterisation.preconditioned])
def test_a_generator_is_one_step_of_ddim(process, kind):
  if kind is parameterisation.preconditioned:
    kind = partial(kind, data_std=0.5)
  net, space = Net(), kind(process)
  sampler = partial(ddim, process=process, times=grids.uniform(1))
  objective = diffusion(
    net, process, shape=SHAPE, parameterisation=space, times=times.uniform(), sampler=sampler, null={'label': 3}
  )
  params = {'net': {'weight': jnp.float32(0.7)}}
  z, cond = jax.random.normal(jax.random.key(0), (3, math.prod(SHAPE))), {'label': jnp.arange(3)}
  noise = process.sigma(jnp.float32(1)) * z.reshape(3, *SHAPE)
  wanted = sampler(objective.denoising.denoiser(params, {}), x=noise, cond=cond, keys=None)
  made = OneStep(net, process, space, SHAPE).apply({'params': params}, z, cond, train=True)
  np.testing.assert_allclose(made, wanted, rtol=1e-6, atol=1e-6)
  assert np.std(made) > 0.01


def test_a_stage_against_a_discriminator_goes_on_from_the_student(tmp_path):
  space = parameterisation.x0(COSINE)
  student = diffusion(
    Net(),
    COSINE,
    shape=SHAPE,
    parameterisation=space,
    times=times.discrete(1),
    sampler=partial(ddim, process=COSINE, times=grids.uniform(1)),
  )
  against = gan(
    OneStep(Net(), COSINE, space, SHAPE),
    Critic(),
    latent=math.prod(SHAPE),
    loss=gan_losses.non_saturating,
  )
  optimizers = {'generator': optax.adam(0.01), 'discriminator': optax.adam(0.01)}
  stages = (
    toys.experiment(objective=student, optimizers={'net': optax.adam(0.1)}, steps=3),
    toys.experiment(
      objective=against,
      optimizers=optimizers,
      averages={'generator': ema.Average('generator', ema.constant(0.5))},
      steps=2,
      begin=as_generator,
    ),
  )
  taught = train(stages[0], tmp_path / 'first').ema['net']['weight']
  done = train(stages, tmp_path / 'both')
  assert int(done.step) == 5
  assert 0 < abs(float(done.params['generator']['net']['weight'] - taught)) < 0.03  # two small steps from there
  assert abs(float(taught) - 0.4) > 0.05  # where a fresh one begins
  assert int(done.opt_state['generator'][0].count) == 2
  images = against.sample(sampling_params(done), {}, {}, jax.random.split(jax.random.key(0), 2))
  assert images.shape == (2, *SHAPE)
