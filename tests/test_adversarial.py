"""A student of one step as a GAN's generator, and discriminators that see a frozen network's features."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import ema, sharding
from jaxgen.models import lpips
from jaxgen.models.projected import ProjectedDiscriminator
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan.adversarial import OneStep, as_generator, perceptual_backbone
from jaxgen.objectives.gan.gan import Backbone, gan
from jaxgen.processes import parameterisation, times
from jaxgen.processes.edm import edm
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.sampler import Sampler
from jaxgen.train import train
from jaxgen.train_state import TrainState, sampling_params
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
  net, sampler = Net(), Sampler(ddim, grids.uniform(1))
  objective = diffusion(
    net, process, shape=SHAPE, parameterisation=kind, times=times.uniform(), sampler=sampler, conditioner=labels(3)
  )
  params = {'net': {'weight': jnp.float32(0.7)}}
  z, cond = jax.random.normal(jax.random.key(0), (3, math.prod(SHAPE))), {'label': jnp.arange(3)}
  noise = process.sigma(jnp.float32(1)) * z.reshape(3, *SHAPE)
  wanted = sampler.solve(objective.denoising.denoiser(params, {}), process, noise, sampler.times, cond=cond)
  made = OneStep(net, process, kind, SHAPE).apply({'params': params}, z, cond, train=True)
  np.testing.assert_allclose(made, wanted, rtol=1e-6, atol=1e-6)
  assert np.std(made) > 0.01


def test_latents_of_another_size_are_refused():
  net = OneStep(Net(), COSINE, parameterisation.x0, SHAPE)
  with pytest.raises(ValueError, match=r'latents of 16 for images of .* latent=8'):
    net.init(jax.random.key(0), jnp.zeros((1, 16)), {})


@pytest.mark.parametrize('judge', ['alexnet', 'vgg16'])
def test_images_too_small_for_a_backbone_are_refused(judge):
  with pytest.raises(ValueError, match=f'images of 8x8 are too small for {judge}'):
    perceptual_backbone(judge).shapes(jnp.zeros((1, 8, 8, 3)))
  perceptual_backbone(judge, side=64).shapes(jnp.zeros((1, 8, 8, 3)))


def test_a_stage_against_a_discriminator_goes_on_from_the_student(tmp_path):
  space = parameterisation.x0
  student = diffusion(
    Net(),
    COSINE,
    shape=SHAPE,
    parameterisation=space,
    times=times.discrete(1),
    sampler=Sampler(ddim, grids.uniform(1)),
  )
  against = gan(
    OneStep(Net(), COSINE, space, SHAPE),
    Critic(),
    latent=math.prod(SHAPE),
    loss=gan_losses.non_saturating,
  )
  optimizers = {'generator': optax.adam(0.01), 'discriminator': optax.adam(0.01)}
  mesh = sharding.make_mesh(data=8)  # scalars do not split
  stages = (
    toys.experiment(objective=student, optimizers={'net': optax.adam(0.1)}, steps=3, mesh=mesh),
    toys.experiment(
      mesh=mesh,
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


class Scaled(nn.Module):
  """A generator of one number."""

  @nn.compact
  def __call__(self, z, cond, *, keys, train=False):
    return self.param('scale', nn.initializers.constant(0.5), ()) * z.reshape(-1, *SHAPE)


def game(backbone, frozen):
  """Losses and gradients of both networks at the start, by phase."""
  objective = gan(Scaled(), Critic(), latent=math.prod(SHAPE), loss=gan_losses.non_saturating, **backbone)
  batch = {'image': jax.random.normal(jax.random.key(1), (4, *SHAPE))}
  made = jax.jit(lambda key: objective.init(key, {}, batch))(jax.random.key(0))
  state = TrainState(jnp.int32(0), jnp.int32(0), made['params'], {}, {}, made['extra'])

  def run(phase, params):
    def loss(subtree):
      return phase.loss(params | {phase.trains: subtree}, state, frozen, batch, jax.random.key(2))[0]

    return jax.value_and_grad(loss)(params[phase.trains])

  return {phase.name: jax.jit(partial(run, phase))(made['params']) for phase in objective.phases}


def test_a_discriminator_sees_the_frozen_networks_output_and_a_generator_learns_through_it():
  backbone = Backbone(lambda frozen, images: (images * frozen['gain']) @ frozen['mix'], lambda images: images)
  frozen = {'gain': jnp.float32(3), 'mix': jnp.eye(1)}
  plain, through = game({}, {}), game({'backbone': backbone}, frozen)
  same = game({'backbone': backbone}, frozen | {'gain': jnp.float32(1)})
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), plain, same)
  assert abs(float(through['discriminator'][0] - plain['discriminator'][0])) > 0.05
  blind = game({'backbone': backbone}, frozen | {'gain': jnp.float32(0)})
  assert float(blind['generator'][1]['scale']) == 0 != float(through['generator'][1]['scale'])


def test_heads_see_each_map_of_the_backbone_and_the_label():
  weights = {name: np.random.default_rng(0).normal(0, 0.05, shape) for name, shape in lpips.shapes().items()}
  frozen = {'lpips': {'alexnet': lpips.tree(weights)['alexnet']}}
  backbone = perceptual_backbone('alexnet', side=64)
  images = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
  maps = jax.jit(backbone.apply)(frozen, images)
  assert [a.shape for a in maps] == [a.shape for a in backbone.shapes(images)]
  assert [a.shape[1] for a in maps] == [15, 7, 3, 3, 3]
  net = ProjectedDiscriminator(width=8, num_classes=3)
  variables = jax.jit(net.init)(jax.random.key(1), maps, {'label': jnp.zeros(2, jnp.int32)})
  judge = jax.jit(lambda maps, label: net.apply(variables, maps, {'label': label}))
  logits = judge(maps, jnp.array([0, 1]))
  assert logits.shape == (2, 16 + 16 + 3 * 9)
  other = judge(maps, jnp.array([0, 2]))
  np.testing.assert_array_equal(other[0], logits[0])
  assert np.all(other[1] != logits[1])
  places = np.repeat(np.arange(5), (16, 16, 9, 9, 9))
  for i in range(5):
    changed = judge((*maps[:i], 2 * maps[i], *maps[i + 1 :]), jnp.array([0, 1]))
    assert set(places[np.flatnonzero(changed[0] != logits[0])]) == {i}
