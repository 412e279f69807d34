"""Models in a row: DALL-E 2's prior and decoder, Imagen's stages, and what is refused."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.generation import cascade
from jaxgen.generation.cascade import Stage
from jaxgen.models.prior import Prior
from jaxgen.objectives.conditioning import Conditioner, Field
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.embedded import EMBEDDING, beside, embedded, statistics
from jaxgen.objectives.super_resolution import enlarged_by, enlarging, super_resolution
from jaxgen.processes import parameterisation, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.sampler import Sampler

PROCESS = vp_cosine()
KEYS = jax.random.split(jax.random.key(0), 3)


class Conditioned(nn.Module):
  """A network that returns a part of its condition, `answer(cond, x)`."""

  answer: Callable[..., Any]

  @nn.compact
  def __call__(self, x, t, cond, *, train=False):
    return self.answer(cond, x) + self.param('bias', nn.initializers.zeros_init(), x.shape[1:])[None]


def _objective(net, shape, conditioner):
  return diffusion(
    net,
    PROCESS,
    shape=shape,
    parameterisation=parameterisation.x0,
    times=times.uniform(),
    sampler=Sampler(ddim, np.float32([1, 0.5, 0])),
    conditioner=conditioner,
    limit=None,
  )


def _params(objective, batch):
  return objective.init(jax.random.key(0), {}, batch)['params']


def _enlarger(level=None):
  """Returns the enlarged image of its condition, with or without the noise's time."""
  conditioner = enlarging(Conditioner(), PROCESS, size=(8, 8), low=4)
  net = Conditioned(
    lambda cond, x: cond['concat'] if level is None else jnp.broadcast_to(cond['level'][:, None, None, None], x.shape)
  )
  return super_resolution(_objective(net, (8, 8, 3), conditioner), low=4, most=0.5)


def test_an_enlarger_reads_the_small_image_with_noise_of_its_level_and_each_images_own_key():
  objective = _enlarger()
  params = _params(objective, {'image': jnp.zeros((2, 8, 8, 3))})
  low = jnp.linspace(-1, 1, 3 * 4 * 4 * 3).reshape(3, 4, 4, 3)

  def sampled(level, keys=KEYS, low=low):
    return objective.sample(params, {}, {'low': low, 'level': jnp.full(len(low), level)}, keys)

  clean = enlarged_by(low, (8, 8))
  np.testing.assert_allclose(sampled(0.0), clean, atol=1e-5)
  noisy = sampled(0.5)
  std = float(jnp.std(noisy - PROCESS.alpha(jnp.float32(0.5)) * clean))
  assert abs(std - float(PROCESS.sigma(jnp.float32(0.5)))) < 0.05
  np.testing.assert_allclose(sampled(0.5, KEYS[1:], low[1:]), noisy[1:], atol=1e-6)  # whatever the batch


def test_levels_in_training_are_drawn_for_each_image_below_the_largest():
  objective = _enlarger(level=True)
  batch = {'image': jnp.zeros((64, 8, 8, 3))}
  params = _params(objective, batch)
  (phase,) = objective.phases
  loss, _ = phase.loss(params, None, {}, batch, jax.random.key(1))
  # The answer is the level as the network sees it, 1000 s, so the loss is the mean of its square: 1000^2 0.5^2 / 3.
  assert abs(float(loss) ** 0.5 - 1000 * 0.5 / 3**0.5) < 40


def test_a_prior_learns_standardised_embeddings_and_answers_with_embeddings():
  images = jnp.linspace(-1, 1, 16 * 2 * 2 * 1).reshape(16, 2, 2, 1)

  def embed(frozen, images):
    return frozen['scale'] * images.reshape(len(images), -1) + 3.0

  frozen = {'scale': jnp.float32(0.1)}
  mean, std = statistics(np.asarray(embed(frozen, images)))
  found = []

  def answer(cond, x):
    found.append(x)
    return jnp.ones_like(x)

  objective = embedded(_objective(Conditioned(answer), (1, 4), Conditioner()), embed, mean=mean, std=std)
  params = objective.init(jax.random.key(0), frozen, {'image': images})['params']
  out = objective.sample(params, frozen, {}, KEYS)
  np.testing.assert_allclose(out, np.broadcast_to(mean + std, (3, 4)), atol=1e-5)
  (phase,) = objective.phases
  loss, _ = phase.loss(params, None, frozen, {'image': images}, jax.random.key(0))
  np.testing.assert_allclose(loss, 2.0, atol=1e-4)  # (1 - x0)^2 of standardised x0
  gradient = jax.grad(lambda p: phase.loss(p, None, frozen, {'image': images}, jax.random.key(0))[0])(params)['net']
  assert not np.any(gradient['mean']) and not np.any(gradient['std'])
  with pytest.raises(ValueError, match='embeddings do not vary in feature 0, of 4'):
    embedded(objective, embed, mean=mean, std=np.zeros(4, np.float32))


def _prior_and_decoder():
  prior = Prior(depth=1, width=8, heads=1)

  def encode(params, frozen, fields, keys):
    return {'text': jnp.repeat(fields['text'][..., None], 6, axis=-1), 'pooled': jnp.ones((len(fields['text']), 6))}

  text = Conditioner({'text': Field(np.zeros(2, np.float32))}, {}, encode)
  first = embedded(
    _objective(prior, (1, 4), text), lambda frozen, images: images[:, 0, 0], mean=np.ones(4), std=np.full(4, 2.0)
  )
  conditioner = Conditioner({EMBEDDING: Field(np.zeros(4, np.float32))})
  second = _objective(
    Conditioned(lambda cond, x: jnp.broadcast_to(cond[EMBEDDING][:, None, None], x.shape)), (4, 4, 4), conditioner
  )
  second = beside(second, {EMBEDDING: lambda frozen, images: images[:, 0, 0]})
  batch = {'image': jnp.zeros((2, 4, 4, 4)), 'text': jnp.zeros((2, 2))}
  return [
    Stage(first, _params(first, batch), {}),
    Stage(second, _params(second, batch), {}, takes=EMBEDDING),
  ]


def test_a_decoder_draws_what_the_prior_says_and_variations_of_an_image():
  stages, cond = _prior_and_decoder(), {'text': jnp.float32([[1, 2], [3, 4], [5, 6]])}
  cascade.check(stages, cond)
  embeddings, images = cascade.cascade(stages, cond, KEYS)
  assert embeddings.shape == (3, 4) and images.shape == (3, 4, 4, 4)
  np.testing.assert_allclose(images[:, 2, 1], embeddings, atol=1e-6)
  own = jnp.float32([[1, 0, 0, 0], [0, 2, 0, 0], [1, 1, 1, 1]])
  (varied,) = cascade.cascade(stages[1:], {}, KEYS, first=own)
  np.testing.assert_allclose(varied[:, 0, 0], own, atol=1e-6)
  way = cascade.between(own[0], own[1], jnp.float32([0, 0.5, 1]))
  np.testing.assert_allclose(way[0], own[0], atol=1e-6)
  np.testing.assert_allclose(jnp.linalg.norm(way, axis=1), [1, 1.5, 2], atol=1e-5)


def test_stages_that_do_not_fit_are_refused_in_a_line():
  stages, cond = _prior_and_decoder(), {'text': jnp.zeros((1, 2))}
  enlarger = _enlarger()
  large = Stage(enlarger, _params(enlarger, {'image': jnp.zeros((1, 8, 8, 3))}), {}, takes='low', fields={'level': 0.1})
  with pytest.raises(ValueError, match='a cascade has no stages'):
    cascade.check([], cond)
  with pytest.raises(ValueError, match="stage 2 of the cascade wants 'level'"):
    cascade.check([stages[0], large._replace(fields={})], cond)
  with pytest.raises(ValueError, match='stage 2 of the cascade: `takes` names the field'):
    cascade.check([stages[0], stages[1]._replace(takes=None)], cond)
  small = _objective(Conditioned(lambda cond, x: x), (2, 2, 3), Conditioner({'text': Field()}))
  base = Stage(small, _params(small, {'image': jnp.zeros((1, 2, 2, 3)), 'text': jnp.zeros((1, 2))}), {})
  with pytest.raises(ValueError, match='the stage before makes images of 2x2, and this one enlarges 4x4'):
    cascade.check([base, large], cond)
  with pytest.raises(ValueError, match='images of 3 pixels cannot be enlarged to 8'):
    enlarging(Conditioner(), PROCESS, size=(8, 8), low=3)
  with pytest.raises(ValueError, match='most is 2; it is the largest time'):
    super_resolution(enlarger, low=4, most=2)
