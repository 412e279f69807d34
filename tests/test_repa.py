"""REPA: its loss against NumPy, in one pass with the diffusion loss, until the step where it stops."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.layers.linear import Linear
from jaxgen.objectives.diffusion import repa
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from jaxgen.samplers.sampler import Sampler
from jaxgen.train_state import TrainState

BATCH = {'image': jax.random.normal(jax.random.key(0), (3, 2, 2, 1))}


class Tokens(nn.Module):
  """A pixel is a token."""

  @nn.compact
  def __call__(self, x, t, cond, *, train=False):
    h = Linear(4, name='in')(x.reshape(len(x), -1, 1))
    if not self.is_initializing():
      self.sow('hidden', 'depth_2', h)
    return Linear(1, name='out')(h).reshape(x.shape)


def _encode(frozen, images):
  return jnp.concatenate([frozen['encoder'] * images, images**2, 1 + images], axis=-1)


def _objective(depth=2, **options):
  return diffusion(
    Tokens(),
    rectified_flow(),
    shape=(2, 2, 1),
    parameterisation=partial(parameterisation.x0, margin=0.05),
    times=times.uniform(),
    sampler=Sampler(euler, grids.uniform(2)),
    beside=repa.repa(_encode, depth=depth, **options),
  )


FROZEN = {'encoder': jnp.float32(0.5)}


@pytest.mark.parametrize('kind', ['per_token', 'spatial'])
def test_the_loss_is_a_cosine_of_tokens_and_features_until_it_stops(kind):
  spatial = kind == 'spatial'
  options = {'projector': repa.Spatial, 'normalise': repa.spatially} if spatial else {}
  objective = _objective(weight=0.7, stop=5, **options)
  params = jax.jit(lambda key: objective.init(key, FROZEN, BATCH)['params'])(jax.random.key(1))
  assert objective.phases[0].trains == ('net', 'projector')

  @jax.jit
  def loss(params, step):
    state = TrainState(step, jnp.int32(0), {}, {}, {}, {})
    return objective.phases[0].loss(params, state, FROZEN, BATCH, jax.random.key(2))

  (before, found), (after, _) = loss(params, jnp.int32(4)), loss(params, jnp.int32(5))
  np.testing.assert_allclose(after - before, 0.7 * found.metrics['alignment'], rtol=1e-4)
  grads = jax.jit(jax.grad(lambda p: loss(p, jnp.int32(0))[0]))(params)
  assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(grads['projector'])) > 0

  h = jax.random.normal(jax.random.key(3), (3, 4, 4))
  got = objective_alignment(params, h, options)
  y = np.asarray(_encode(FROZEN, BATCH['image'])).astype(np.float64)
  if spatial:
    y = (y - y.mean((1, 2), keepdims=True)) / (y.std((1, 2), keepdims=True) + 1e-6)
  project = (repa.Spatial if spatial else repa.PerToken)(3)
  p = np.asarray(project.apply({'params': params['projector']}, h.reshape(3, 2, 2, 4)), np.float64)
  want = (p * y).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(y, axis=-1)
  np.testing.assert_allclose(got, want.mean(), rtol=1e-4)


def objective_alignment(params, h, options):
  term = repa.repa(_encode, depth=2, **options)
  _, found = term.loss(params['projector'], {'depth_2': (h,)}, FROZEN, BATCH, jnp.int32(0))
  return found['alignment']


def test_tokens_that_do_not_leave_are_an_error():
  with pytest.raises(ValueError, match='REPA wants depth_3: set its hidden'):
    _objective(depth=3).init(jax.random.key(0), FROZEN, BATCH)
