"""DMD2 and LCM: their losses against transcriptions in NumPy, and that a student comes to its teacher."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.adapters import lora
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.stack import stack
from jaxgen.objectives.adapted import adapted
from jaxgen.objectives.conditioning import always, labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.few_step import dmd, latent_consistency
from jaxgen.processes import parameterisation, times
from jaxgen.processes.process import corrupt, noise_like
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step

PROCESS = vp_cosine()


class Level(nn.Module):
  """x0 = a share of x_t, less where there is more noise, and a level of each class."""

  share: float = 0.5

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    level = self.param('level', nn.initializers.constant(0.0), (3,))
    return self.share * jnp.cos(t * jnp.pi / 2000)[:, None, None, None] * x + level[cond['label']][:, None, None, None]


class Mix(nn.Module):
  """A block."""

  @nn.compact
  def __call__(self, x):
    return x + Linear(x.shape[-1], name='mix')(x)


class Tiny(nn.Module):
  """A transformer without attention: tokens are pixels, and each block is a product."""

  @nn.compact
  def __call__(self, x, t, cond, *, train=False):
    b, h, w, c = x.shape
    tokens = Linear(4, name='in')(x.reshape(b, h * w, c)) + cond['text'].mean((1, 2))[:, None, None]
    tokens = stack(self, Mix, tokens, depth=2)
    return Linear(c, name='out')(tokens).reshape(x.shape)


def _base(net, conditioner, shape=(1, 2, 1)):
  return diffusion(
    net,
    PROCESS,
    shape=shape,
    parameterisation=partial(parameterisation.x0, margin=0.05),
    times=times.uniform(),
    sampler=Sampler(ddim, grids.uniform(4)),
    conditioner=conditioner,
  )


BASE = _base(Level(), labels(2, drop_rate=0.1))
OF_TEXT, TEXTS = _base(Tiny(), always('text')), {'image': jnp.ones((4, 1, 2, 1)), 'text': jnp.ones((4, 3, 8))}
TEACHER = {'net': {'level': jnp.asarray([0.4, -0.3, 0.1])}}
BATCH = {'image': jnp.zeros((16, 1, 2, 1)), 'label': jnp.arange(16) % 2}


def _learned(objective, rate, steps):
  optimizers = {
    name: optax.adam(rate)
    for name in jax.eval_shape(lambda key: objective.init(key, TEACHER, BATCH)['params'], jax.random.key(0))
  }
  step = make_train_step(objective, optimizers, {})

  @jax.jit
  def run(key):
    state = init_state(objective, optimizers, {}, BATCH, key, frozen=TEACHER)
    body = lambda state, i: (step(state, TEACHER, BATCH, jax.random.fold_in(key, i))[0], None)  # noqa: E731
    return jax.lax.scan(body, state, jnp.arange(steps))[0].params

  return run(jax.random.key(0))


def test_dmds_generator_comes_to_its_teachers_levels():
  """Guidance by 2 moves each class away from the null's level, twice as far."""
  objective = dmd.dmd(
    _base(Level(0.0), labels(2)),
    noise_times=lambda key, b: 0.02 + 0.96 * jax.random.uniform(key, (b,)),
    times=(1.0, 0.5),
    every=2,
    guide_teacher=(classifier_free(2.0),),
    space=parameterisation.x0,
  )
  assert [phase.trains for phase in objective.phases] == ['net', 'fake']
  level = _learned(objective, 0.02, 150)['net']['level']
  np.testing.assert_allclose(level[:2], [0.7, -0.7], atol=0.15)


def test_the_gradient_of_matching_is_dmds():
  """Their code: p_real = x - real, p_fake = x - fake; grad = (p_real - p_fake) / mean |p_real|, over the values."""
  rng = np.random.default_rng(0)
  x, real, fake = (rng.normal(size=(3, 2, 2, 1)).astype(np.float32) for _ in range(3))
  got = jax.grad(dmd.matching)(*map(jnp.asarray, (x, real, fake)))
  p_real, p_fake = x - real, x - fake
  want = (p_real - p_fake) / np.abs(p_real).mean((1, 2, 3), keepdims=True) / x.size
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_fake_model_starts_as_the_teacher_and_the_adversary_sees_its_tokens():
  teacher = jax.jit(lambda key: OF_TEXT.init(key, {}, TEXTS)['params'])(jax.random.key(0))
  objective = dmd.dmd(OF_TEXT, noise_times=times.uniform(), adversary=0.1, depth=1)
  params = jax.jit(lambda key: objective.init(key, teacher, TEXTS)['params'])(jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, dmd.fake_of(params, teacher), teacher['net'])
  assert params['head']['kernel'].shape == (4, 1)
  x, cond = np.ones((4, 2, 1)), {'text': TEXTS['text']}
  got = jax.jit(partial(dmd.hidden_tokens, Tiny(), depth=1))(teacher['net'], TEXTS['image'], jnp.zeros(4), cond)
  want = x @ teacher['net']['in']['kernel'] + teacher['net']['in']['bias'][None, None] + 1.0
  for i in range(2):
    want = want + want @ teacher['net']['blocks']['mix']['kernel'][i]
  np.testing.assert_allclose(got, want, rtol=1e-5)
  adversary = objective.phases[2]
  grads = jax.jit(jax.grad(lambda p: adversary.loss(p, None, teacher, TEXTS, jax.random.key(2))[0]))(params)
  assert jnp.abs(grads['head']['kernel']).max() > 0
  assert all(jnp.abs(leaf).max() == 0 for leaf in jax.tree.leaves(grads['net']))


def test_lcm_is_luos_loss():
  """A DDIM step of the guided teacher, and their pseudo-Huber of c = 0.001, by hand for one level a class."""
  objective = latent_consistency.latent_consistency(BASE, grid=10, guide_teacher=(classifier_free(3.0),), data_std=0.5)
  params, key = {'net': {'level': jnp.asarray([0.2, 0.1, 0.0])}}, jax.random.key(5)
  got, _ = jax.jit(lambda p: objective.phases[0].loss(p, None, TEACHER, BATCH, key))(params)
  time_key, noise_key, _ = jax.random.split(key, 3)
  t = times.discrete(10)(time_key, 16)
  s = t - 0.1
  x_t = np.asarray(corrupt(PROCESS, BATCH['image'], noise_like(BATCH['image'], noise_key), t))
  of = lambda f, time: np.asarray(f(jnp.maximum(time, 0.0))).reshape(-1, 1, 1, 1)  # noqa: E731

  def x0(level, x, time):
    return 0.5 * np.cos(of(lambda u: u, time) * np.pi / 2) * x + np.asarray(level).reshape(-1, 1, 1, 1)

  label = np.asarray(BATCH['label'])
  conditional, null = np.asarray(TEACHER['net']['level'])[label], np.full(16, 0.1, np.float32)
  guided = x0(null + 3 * (conditional - null), x_t, t)
  eps = (x_t - of(PROCESS.alpha, t) * guided) / np.maximum(of(PROCESS.sigma, t), of(PROCESS.sigma, jnp.float32([0.05])))
  x_s = of(PROCESS.alpha, s) * guided + of(PROCESS.sigma, s) * eps

  def f(x, time):
    scaled = 10 * 1000 * of(lambda u: u, time)
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
    return skip * x + out * x0(np.asarray(params['net']['level'])[label], x, time)

  want = np.mean(np.sqrt((f(x_t, t) - f(x_s, s)) ** 2 + 1e-6) - 1e-3)
  np.testing.assert_allclose(got, want, rtol=2e-3)


def test_an_lcm_lora_trains_its_correction_alone():
  teacher = jax.jit(lambda key: OF_TEXT.init(key, {}, TEXTS)['params'])(jax.random.key(0))
  student = latent_consistency.latent_consistency(OF_TEXT)
  objective = adapted(student, lora.lora(lora.LoRA(2, on=('mix',))))
  params = jax.jit(lambda key: objective.init(key, teacher, TEXTS)['params'])(jax.random.key(1))
  assert set(params) == {'lora'}
  loss = lambda p: objective.phases[0].loss(p, None, teacher, TEXTS, jax.random.key(2))[0]  # noqa: E731
  grads = jax.jit(jax.grad(loss))(params)
  assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 0


def test_times_of_students_start_at_noise():
  with pytest.raises(ValueError, match='must start at 1 and fall'):
    latent_consistency.latent_consistency(BASE, times=(0.5, 0.7))
  with pytest.raises(ValueError, match='must start at 1 and fall'):
    dmd.dmd(BASE, noise_times=times.uniform(), times=())
