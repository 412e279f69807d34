"""Every objective that compares images takes weights of images and of pixels."""

from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.objectives.autoencoder import autoencoder
from jaxgen.objectives.few_step.consistency import consistency
from jaxgen.objectives.few_step.distillation import progressive
from jaxgen.objectives.few_step.mean_flow import mean_flow
from jaxgen.objectives.few_step.scm import scm
from jaxgen.objectives.few_step.shortcut import shortcut
from jaxgen.objectives.gan import gan, losses
from jaxgen.processes import parameterisation, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids

SHAPE = (2, 2, 1)
ONE = grids.uniform(1)
LEFT = jnp.zeros((4, *SHAPE)).at[:, :, 0].set(1.0)


class Scaled(nn.Module):
  @nn.compact
  def __call__(self, x, t, cond, *, train):
    return x * self.param('scale', nn.initializers.constant(0.5), ())


OBJECTIVES = {
  'mean_flow': partial(mean_flow, times=times.uniform(), jumps=ONE, different=0.5),
  'shortcut': partial(shortcut, jumps=ONE),
  'scm': scm,
  'progressive': partial(progressive, process=vp_cosine(), steps=2, parameterisation=parameterisation.x0),
  'consistency': partial(consistency, steps=1),
}


def _losses(name, *weights):
  objective = OBJECTIVES[name](net=Scaled(), shape=SHAPE)
  key = jax.random.key(0)
  batch = {'image': jax.random.uniform(key, (4, *SHAPE), minval=-1.0)}
  made = objective.init(key, {}, batch)
  state = SimpleNamespace(step=jnp.int32(0), ema={}, extra=made['extra'])
  loss = objective.phases[0].loss
  return [loss(made['params'], state, {}, batch | {'weight': weight}, key)[0] for weight in weights]


@pytest.mark.parametrize('name', OBJECTIVES)
def test_few_step_losses_take_weight_maps(name):
  first = jnp.array([1.0, 0.0, 0.0, 0.0])
  whole, of_first, of_others, left, right = _losses(name, jnp.ones(4), first, 1 - first, LEFT, 1 - LEFT)
  np.testing.assert_allclose(of_first + of_others, whole, rtol=1e-5)
  assert 0 < left < whole
  if name != 'consistency':  # whose distance is of whole images
    np.testing.assert_allclose(left + right, whole, rtol=1e-5)


def test_reconstructions_take_weight_maps():
  x, x_hat = jax.random.normal(jax.random.key(1), (2, 4, *SHAPE))
  error = lambda weight: autoencoder._reconstruction(  # noqa: E731
    {}, x, weight, x_hat, pixels=lambda a, b: (a - b) ** 2, perceptual=0.0, judge='alexnet'
  )[0]
  np.testing.assert_allclose(error(LEFT) + error(1 - LEFT), error(None), rtol=1e-6)
  np.testing.assert_allclose(error(2.0 * jnp.ones(4)), 2 * error(None), rtol=1e-6)


def test_an_objective_that_uses_no_weights_refuses_them():
  objective = gan.gan(Scaled(), Scaled(), latent=4, loss=losses.hinge)
  batch = {'image': jnp.zeros((4, *SHAPE)), 'weight': jnp.ones(4)}
  with pytest.raises(ValueError, match="a GAN does not use weights, and the batch has the field 'weight'"):
    objective.init(jax.random.key(0), {}, batch)
