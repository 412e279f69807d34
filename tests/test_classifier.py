"""A classifier of noisy images: its loss, what it learns, and the samples it guides."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.models.unet_classifier import UNetClassifier
from jaxgen.objectives.base import Objective
from jaxgen.objectives.diffusion.classifier import guided_by_classifier
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from jaxgen.samplers.sampler import Sampler
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step
from tests.analytic import mixture

FLOW, MEANS, VARIANCE = rectified_flow(), (-0.6, 0.6), 0.04


class Unlabelled(nn.Module):
  """x0 of two Gaussians, one for each class, of which it knows nothing."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    assert not cond
    off = self.param('off', nn.initializers.zeros, ())
    return mixture(FLOW, MEANS, VARIANCE)(x, t / 1000, cond).x0 + 0 * off


class Odds(nn.Module):
  """Logits of the two classes: exact if `share` is 1."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    a, s = FLOW.alpha(t / 1000), FLOW.sigma(t / 1000)
    half = MEANS[1] * a * x[:, 0, 0, 0] / (a * a * VARIANCE + s * s)
    share: Any = self.param('share', nn.initializers.zeros, ())
    return share * jnp.stack([-half, half], axis=1)


def _objective(scale=2.0, net=None):
  base = diffusion(
    Unlabelled(),
    FLOW,
    shape=(1, 1, 1),
    parameterisation=parameterisation.x0,
    times=times.uniform(),
    sampler=Sampler(euler, grids.quadratic(100)),
    limit=None,
  )
  return guided_by_classifier(base, net or Odds(), scale=scale)


def _batch(n=1024):
  label = np.arange(n, dtype=np.int32) % 2
  noise = np.random.default_rng(0).standard_normal(n)
  image = np.take(MEANS, label) + VARIANCE**0.5 * noise
  return {'image': jnp.asarray(image, jnp.float32).reshape(n, 1, 1, 1), 'label': jnp.asarray(label)}


def test_the_classifier_learns_the_odds_beside_the_model_and_leads_to_the_class():
  """The exact share is 1; scale 2 then draws from the class's own Gaussian, of an unconditional model."""
  objective, batch = _objective(), _batch()
  optimizers = {'net': optax.sgd(0.0), 'classifier': optax.adam(optax.cosine_decay_schedule(0.1, 200))}
  step = make_train_step(objective, optimizers, {})

  @jax.jit
  def run(batch):
    state = init_state(objective, optimizers, {}, batch, jax.random.key(0))
    body = lambda state, i: step(state, {}, batch, jax.random.fold_in(jax.random.key(1), i))  # noqa: E731
    return jax.lax.scan(body, state, jnp.arange(200))

  state, metrics = run(batch)
  np.testing.assert_allclose(state.params['classifier']['share'], 1, atol=0.06)
  loss = np.asarray(metrics['classifier/loss'].total)
  np.testing.assert_allclose(loss[0], np.log(2), atol=1e-5)
  assert loss[-20:].mean() < 0.65 * loss[0]
  label = {'label': jnp.repeat(jnp.arange(2), 1024)}
  keys = jax.random.split(jax.random.key(2), 2048)
  images = np.asarray(jax.jit(objective.sample)(state.params, {}, label, keys)).reshape(2, -1)
  np.testing.assert_allclose(images.mean(1), MEANS, atol=0.04)
  np.testing.assert_allclose(images.var(1), VARIANCE, atol=0.012)


def test_what_does_not_denoise_cannot_be_guided():
  with pytest.raises(ValueError, match='this objective has none'):
    guided_by_classifier(Objective(lambda *_: {}, (), lambda *_: jnp.zeros(0)), Odds(), scale=2.0)


@pytest.mark.slow
def test_the_network_sees_the_image_and_the_time_and_starts_undecided():
  net = UNetClassifier(num_classes=3, width=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4)
  x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.array([3.0, 700.0])
  params = jax.jit(lambda key: net.init(key, x, t, {})['params'])(jax.random.key(1))
  forward = jax.jit(lambda params, x, t: net.apply({'params': params}, x, t, {}))
  np.testing.assert_array_equal(forward(params, x, t), 0)
  draw = np.random.default_rng(0).standard_normal
  params = jax.tree.map(lambda leaf: leaf + 0.1 * draw(leaf.shape, np.float32), params)
  logits = forward(params, x, t)
  assert logits.shape == (2, 3)
  later = forward(params, x, t + jnp.array([0.0, 50.0]))
  np.testing.assert_allclose(later[0], logits[0], atol=1e-5)
  assert np.abs(later[1] - logits[1]).max() > 1e-4
  gradient = jax.jit(jax.grad(lambda x: forward(params, x, t)[0, 0]))(x)
  assert (np.abs(gradient[0]) > 0).all()
  assert (gradient[1] == 0).all()
