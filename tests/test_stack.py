"""A stack of blocks: a scan for accelerators and a loop for CPUs over one tree; segments, and inputs for each block."""

import functools
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxgen import sharding
from jaxgen.models.dit import DiT
from jaxgen.models.layers import remat
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.stack import stack

_DEPTH, _WIDTH = 3, 8
_draw = np.random.default_rng(0).standard_normal
_x = jnp.asarray(_draw((2, 4, _WIDTH)), jnp.float32)


class Block(nn.Module):
  """x + tanh(linear(x)) + c + e."""

  @nn.compact
  def __call__(self, x, c, e=None):
    x = x + jnp.tanh(Linear(_WIDTH, name='linear')(x)) + c[:, None]
    self.sow('intermediates', 'x', x)
    return x if e is None else x + e


class Network(nn.Module):
  """The stack in the segments that end at `stops`."""

  stops: tuple[int, ...] = (_DEPTH,)
  policy: remat.Policy = None

  @nn.compact
  def __call__(self, x, c, each=None):
    start = 0
    for stop in self.stops:
      part = each if each is None else each[start:stop]
      x = stack(self, Block, x, c, depth=_DEPTH, each=part, remat=self.policy, start=start, stop=stop)
      start = stop
    return x


_c = jnp.asarray(_draw((2, _WIDTH)), jnp.float32)
_each = jnp.asarray(_draw((_DEPTH, 2, 4, _WIDTH)), jnp.float32)


@pytest.fixture(scope='module')
def variables():
  made = jax.jit(Network().init)(jax.random.key(0), _x, _c)
  assert jax.tree.map(jnp.shape, made) == {
    'params': {'blocks': {'linear': {'kernel': (_DEPTH, _WIDTH, _WIDTH), 'bias': (_DEPTH, _WIDTH)}}}
  }
  return made


def _on(platform):
  """A mesh of one device of that platform, which is not there."""
  device = AbstractDevice(device_kind=platform, num_cores=1, platform=platform)
  return AbstractMesh((1,) * 4, sharding.AXES, axis_types=(AxisType.Auto,) * 4, abstract_device=device)


def _expected(variables, each=None, stop=_DEPTH):
  x = _x
  for i in range(stop):
    params = jax.tree.map(operator.itemgetter(i), variables['params']['blocks'])
    x = Block().apply({'params': params}, x, _c, None if each is None else each[i])
  return x


def _value(net, variables, each):
  return jnp.sum(jnp.sin(net.apply(variables, _x, _c, each)))


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize('net', [Network(), Network(stops=(1, 3)), Network(policy=remat.policy('full'))])
def test_every_way_is_the_blocks_one_after_another(variables, platform, net):
  def of_blocks(variables, each):
    return jnp.sum(jnp.sin(_expected(variables, each)))

  grads = jax.grad(functools.partial(_value, net), (0, 1))
  with jax.sharding.use_abstract_mesh(_on(platform)):
    program = jax.make_jaxpr(grads)(variables, _each)
  assert ('scan[' in str(program)) == (platform == 'tpu' or net.policy is not None)
  leaves, structure = jax.tree.flatten((variables, _each))
  run = jax.jit(functools.partial(jax.core.eval_jaxpr, program.jaxpr, program.consts))
  got = jax.tree.unflatten(structure, run(*leaves))
  wanted = jax.jit(jax.grad(of_blocks, (0, 1)))(variables, _each)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, wanted)


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_what_blocks_sow_is_stacked(variables, platform):
  apply = functools.partial(Network(stops=(2, 3)).apply, variables, _x, _c, mutable=['intermediates'])
  if platform == 'tpu':
    with jax.sharding.use_abstract_mesh(_on(platform)):
      shapes = jax.eval_shape(apply)[1]
    assert shapes['intermediates']['blocks']['x'][0].shape == (_DEPTH, 2, 4, _WIDTH)
    return
  (sown,) = jax.jit(apply)()[1]['intermediates']['blocks']['x']
  for i in range(_DEPTH):
    np.testing.assert_allclose(sown[i], _expected(variables, stop=i + 1), rtol=1e-5, atol=1e-6)


def test_blocks_that_are_not_there_are_refused(variables):
  with pytest.raises(ValueError, match='blocks 0 to 4 are not in a stack of 3'):
    Network(stops=(4,)).apply(variables, _x, _c)


_image = jnp.asarray(_draw((2, 8, 8, 3)), jnp.float32)
_dit = functools.partial(DiT, patch=2, depth=_DEPTH, width=16, heads=2, rope=True)


@pytest.fixture(scope='module')
def dit_params():
  shapes = jax.eval_shape(_dit().init, jax.random.key(0), _image, jnp.ones(2), {})['params']
  return jax.tree.map(lambda leaf: jnp.asarray(0.2 * _draw(leaf.shape), jnp.float32), shapes)


def _apply(net, params, cond=None, **options):
  return net.apply({'params': params}, _image, jnp.array([10.0, 700.0]), cond or {}, **options)


def test_hidden_tokens_leave_at_a_depth(dit_params):
  """Those after two blocks are those after the last of a network without the third."""
  out, sown = _apply(_dit(hidden=(2, 3)), dit_params, mutable=['hidden'])
  np.testing.assert_allclose(out, _apply(_dit(), dit_params), rtol=1e-4, atol=1e-5)
  shorter = dit_params | {'blocks': jax.tree.map(lambda leaf: leaf[:2], dit_params['blocks'])}
  _, of_shorter = _apply(_dit(depth=2, hidden=(2,)), shorter, mutable=['hidden'])
  (tokens,), (wanted,) = sown['hidden']['depth_2'], of_shorter['hidden']['depth_2']
  assert tokens.shape == (2, 16, 16)
  np.testing.assert_allclose(tokens, wanted, rtol=1e-5, atol=1e-5)


def test_routed_tokens_pass_blocks_by(dit_params):
  """Blocks 1 and 2 see some of the tokens; with all of them kept, in any order, they are the network's own."""
  net = _dit(route=(1, 3), hidden=(1, 3))
  order = jnp.asarray(np.random.default_rng(1).permuted(np.tile(np.arange(16), (2, 1)), axis=1), jnp.int32)
  plain = _apply(_dit(), dit_params)
  np.testing.assert_allclose(_apply(net, dit_params), plain, rtol=1e-4, atol=1e-5)  # nothing is routed
  np.testing.assert_allclose(_apply(net, dit_params, {'kept': order}), plain, rtol=1e-4, atol=1e-4)
  kept = order[:, :5]
  out, sown = _apply(net, dit_params, {'kept': kept}, mutable=['hidden'])
  before, after = sown['hidden']['depth_1'][0], sown['hidden']['depth_3'][0]
  changed = np.abs(after - before).max(-1) > 1e-6
  assert [set(np.flatnonzero(row)) for row in changed] == [set(np.asarray(row).tolist()) for row in kept]
  assert np.abs(out - plain).max() > 1e-3


def test_blocks_take_the_policy_of_their_surroundings_where_they_have_none(variables):
  found = []
  for policy in (None, remat.policy('dots')):
    with remat.each_block(policy):
      found.append('remat' in str(jax.make_jaxpr(Network().apply)(variables, _x, _c)))
  assert found == [False, True]
  assert 'remat' not in str(jax.make_jaxpr(Network().apply)(variables, _x, _c))
