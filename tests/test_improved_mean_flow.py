"""Improved MeanFlow: its loss against one by hand, for a network whose derivative is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.objectives.conditioning import labels, unconditional
from jaxgen.objectives.few_step.improved_mean_flow import improved_mean_flow
from jaxgen.processes import times
from jaxgen.processes.process import noise_like
from jaxgen.samplers import grids

A, B, C = 0.3, -0.7, 0.4


class Plane(nn.Module):
  """u = a x + b t + c (t - r) + a level of the class, times the scale of guidance."""

  @nn.compact
  def __call__(self, x, t, cond, *, train=False):
    level = self.param('level', nn.initializers.constant(0.0), (3,))
    shift = level[cond['label']] * cond['guidance']
    return A * x + (B * t + C * cond['interval'] + shift)[:, None, None, None]


def _objective(conditioner=None, **options):
  conditioner = labels(2, drop_rate=0.5) if conditioner is None else conditioner
  return improved_mean_flow(
    Plane(),
    shape=(1, 2, 1),
    times=times.uniform(),
    jumps=grids.uniform(1),
    conditioner=conditioner,
    **{'scale': 2.0, 'largest': 4.0, 'power': 0.0, 'limit': None, **options},
  )


def test_the_loss_is_gengs():
  objective, key, n = _objective(), jax.random.key(4), 8
  batch = {'image': jax.random.normal(jax.random.key(1), (n, 1, 2, 1)), 'label': jnp.arange(n) % 2}
  level = np.asarray([0.5, -0.2, 0.1])
  params = {'net': {'level': jnp.asarray(level, jnp.float32)}}
  got, found = jax.jit(lambda p: objective.phases[0].loss(p, None, {}, batch, key))(params)

  keys = jax.random.split(key, 8)
  first, second = (np.asarray(jax.random.uniform(k, (n,))) for k in keys[:2])
  t, jumping = np.maximum(first, second), np.asarray(jax.random.bernoulli(keys[2], 0.5, (n,)))
  r = np.where(jumping, np.minimum(first, second), t)
  w = 4.0 ** np.asarray(jax.random.uniform(keys[7], (n,)))
  eps, x0 = np.asarray(noise_like(batch['image'], keys[3])), np.asarray(batch['image'])
  dropped = np.asarray(labels(2, drop_rate=0.5).dropped(params, {}, batch, drop_key=keys[4], encode_key=keys[6])[1])
  label = np.where(dropped, 2, np.asarray(batch['label']))
  each = lambda a: np.asarray(a).reshape(n, 1, 1, 1)  # noqa: E731
  x, v = (1 - each(t)) * x0 + each(t) * eps, eps - x0
  u = lambda of, length: A * x + each(B * t + C * length + level[of] * w)  # noqa: E731
  now, unguided = u(label, 0), u(np.full(n, 2), 0)
  v_g = np.where(each(dropped), v, v + each(1 - 1 / w) * (now - unguided))
  whole = u(label, t - r) + each(t - r) * (A * now + B + C)
  want = ((whole - v_g) ** 2).sum((1, 2, 3))
  np.testing.assert_allclose(got, want.mean(), rtol=1e-4)
  np.testing.assert_allclose(found.metrics['loss'], want.mean() / 2, rtol=1e-4)


def test_samples_are_told_their_scale():
  objective = _objective()
  params = {'net': {'level': jnp.asarray([0.5, -0.2, 0.1])}}
  cond, keys = {'label': jnp.asarray([0, 1])}, jax.random.split(jax.random.key(0), 2)
  once = objective.sample(params, {}, cond, keys)
  other = _objective(scale=3.0).sample(params, {}, cond, keys)
  np.testing.assert_allclose((once - other)[:, 0, 0, 0], [0.5, -0.2], atol=1e-5)  # x0 = x_1 - u
  with pytest.raises(ValueError, match='raise largest'):
    _objective(scale=9.0)
  with pytest.raises(ValueError, match='has a null'):
    _objective(unconditional)
