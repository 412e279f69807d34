"""Sharded equals single, and every leaf is where the rules say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import ema, sharding
from jaxgen.models.dit import DiT
from jaxgen.objectives.diffusion import diffusion
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step

MESHES = {
  'data 8': {'data': 8},
  'fsdp 8': {'fsdp': 8, 'data': 1},
  'fsdp 4 x tensor 2': {'fsdp': 4, 'tensor': 2, 'data': 1},
}
OPTIMIZERS = {'net': optax.adamw(1e-3)}
AVERAGES = {'net': ema.Average('net', ema.constant(0.9))}


@pytest.fixture(scope='module')
def objective():
  net = DiT(patch=4, depth=2, width=64, heads=4, num_classes=7)
  return diffusion(
    net,
    rectified_flow(),
    shape=(16, 16, 3),
    parameterisation=parameterisation.velocity(rectified_flow()),
    times=times.uniform(),
    sampler=lambda denoise, *, x, cond, keys: x,
    null={'label': 7},
    drop_rate=0.1,
  )


@pytest.fixture(scope='module')
def batch():
  key = jax.random.key(3)
  return {
    'image': jax.random.uniform(key, (16, 16, 16, 3), minval=-1.0, maxval=1.0),
    'label': jnp.arange(16, dtype=jnp.int32) % 7,
  }


@pytest.fixture(scope='module')
def state(objective, batch):
  """Initial state with the zero-initialised layers perturbed: at zero most gradients are zero."""
  made = jax.jit(lambda key: init_state(objective, OPTIMIZERS, AVERAGES, batch, key))(jax.random.key(0))
  leaves, treedef = jax.tree.flatten(made.params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
  return jax.device_get(made.replace(params=jax.tree.unflatten(treedef, leaves)))


def _two_steps(objective, state, batch, mesh, rules=()):
  shardings = sharding.shard_tree(state, mesh, rules)
  step = jax.jit(
    make_train_step(objective, OPTIMIZERS, AVERAGES, clip_norm=1.0),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  state = jax.device_put(state, shardings)
  batch = jax.device_put(batch, sharding.batch_sharding(mesh))
  losses = []
  for i in range(2):
    state, metrics = step(state, {}, batch, jax.random.key(i))
    losses.append(float(metrics['loss'].total))
  return losses, jax.device_get(state)


def _relative(a, b) -> float:
  return float(np.linalg.norm(np.subtract(a, b)) / max(np.linalg.norm(a), 1e-12))


@pytest.fixture(scope='module')
def single(objective, state, batch):
  mesh = sharding.make_mesh(data=1, devices=jax.devices()[:1])
  return _two_steps(objective, state, batch, mesh)


@pytest.mark.parametrize('name', MESHES)
def test_a_sharded_step_equals_a_single_device_step(name, objective, state, batch, single):
  mesh = sharding.make_mesh(**MESHES[name])
  losses, after = _two_steps(objective, state, batch, mesh, sharding.DIT_RULES if 'tensor' in name else ())
  np.testing.assert_allclose(losses, single[0], rtol=1e-5)
  for part in ('params', 'ema'):
    worst = jax.tree.map(_relative, getattr(single[1], part), getattr(after, part))
    assert max(jax.tree.leaves(worst)) < 1e-5, worst


def test_a_rule_covers_a_parameter_its_moments_and_its_average(state):
  mesh = sharding.make_mesh(fsdp=4, tensor=2, data=1)
  tree = sharding.shard_tree(state, mesh, sharding.DIT_RULES)
  specs = {
    sharding.path_name(path): tuple(leaf.spec)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if 'attention/qkv/kernel' in sharding.path_name(path)
  }
  assert len(specs) == 4  # parameter, two moments, average
  assert set(specs.values()) == {(None, 'fsdp', None, 'tensor', None)}
  assert tuple(tree.step.spec) == ()


def test_without_a_rule_the_largest_dimension_that_divides_is_split():
  mesh = sharding.make_mesh(fsdp=8, data=1)
  shapes = {'a': (3, 16, 24), 'b': (5, 7), 'c': (), 'd': (16, 16), 'e': (64, 12)}
  tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
  specs = {name: tuple(s.spec) for name, s in sharding.shard_tree(tree, mesh).items()}
  assert specs == {
    'a': (None, None, 'fsdp'),
    'b': (None, None),
    'c': (),
    'd': (None, 'fsdp'),
    'e': ('fsdp', None),
  }


def test_bad_meshes_rules_and_batches_are_refused():
  with pytest.raises(ValueError, match=r'mesh data=3 .* does not cover 8 devices'):
    sharding.make_mesh(data=3)
  with pytest.raises(ValueError, match='does not cover'):
    sharding.make_mesh(data=-1, fsdp=3)
  mesh = sharding.make_mesh(fsdp=8, data=1)
  tree = {'net': {'kernel': jax.ShapeDtypeStruct((12, 8), jnp.float32)}}
  with pytest.raises(ValueError, match=r"'missing' .* matches no parameter"):
    sharding.shard_tree(tree, mesh, [('missing', ('fsdp',))])
  with pytest.raises(ValueError, match=r'net/kernel of shape \(12, 8\) does not divide over fsdp=8'):
    sharding.shard_tree(tree, mesh, [('kernel$', ('fsdp', None))])
  with pytest.raises(ValueError, match='batch_size 100 does not divide over 8 devices; use a multiple of 8'):
    sharding.check_batch_size(100, mesh)
  with pytest.raises(ValueError, match='times 3 accumulation steps; use a multiple of 24'):
    sharding.check_batch_size(64, mesh, accumulate=3)
