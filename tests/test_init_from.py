"""A run that starts from elsewhere: another run's averages, published weights, and what may differ; frozen networks."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import frozen as frozen_networks
from jaxgen import init_from, sharding
from jaxgen.cli import main as program
from jaxgen.experiment import as_stages
from jaxgen.frozen import Frozen, frozen, tree_hash
from jaxgen.init_from import InitFrom, merged
from jaxgen.models.dit import DiT
from jaxgen.pretrained import original, published
from jaxgen.pretrained.layout import Meta, Pretrained
from jaxgen.pretrained.state_dict import Unread
from jaxgen.run import check_identity, identity
from jaxgen.stage_setup import abstract_state, first_state
from jaxgen.train import train
from tests import toys

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(scope='module')
def taught(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'base'
  return folder, train(toys.experiment(steps=4), folder)


def _first(stage, **ways):
  stage = as_stages(stage)[0]
  return first_state(stage, abstract_state(stage), **({'resume': None, 'previous': None} | ways))


def test_a_run_starts_from_another_s_averages(taught):
  folder, state = taught
  stage = toys.experiment(init_from=InitFrom(folder), optimizers={'net': optax.adamw(1e-2)})
  got, fresh = _first(stage), _first(stage._replace(init_from=None))
  for name, leaf in state.ema['net'].items():
    np.testing.assert_array_equal(got.params['net'][name], leaf)
    np.testing.assert_array_equal(got.ema['net'][name], leaf)
    assert got.params['net'][name].sharding == fresh.params['net'][name].sharding
    assert np.abs(leaf - fresh.params['net'][name]).max() > 0
  assert int(got.step) == 0
  plain = _first(stage._replace(init_from=InitFrom(folder, average='none')))
  np.testing.assert_array_equal(plain.params['net']['kernel'], state.params['net']['kernel'])
  assert np.abs(plain.params['net']['kernel'] - got.params['net']['kernel']).max() > 0


def _place(networks):
  places = sharding.shard_tree(frozen_networks.shapes(networks), sharding.make_mesh(data=2, fsdp=4))
  return frozen_networks.place(networks, places)


def test_the_four_ways_are_told_apart(taught):
  _, state = taught
  stage = toys.experiment(init_from=InitFrom('nowhere'))
  assert _first(stage, resume=lambda abstract: state) is state
  after = _first(stage, previous=state)
  np.testing.assert_array_equal(after.params['net']['kernel'], state.params['net']['kernel'])
  with pytest.raises(FileNotFoundError, match='no run and no published network at nowhere'):
    _first(stage)


PARAMS = {'net': {'conv_in': jnp.ones((3, 8)), 'table': jnp.full((5, 2), 7.0), 'out': jnp.zeros(2)}}
THERE = {'net': {'conv_in': np.full((3, 4), 2.0), 'table': np.ones((9, 2)), 'out': np.ones(2), 'old': np.ones(1)}}


def test_patterns_name_what_may_differ():
  got = merged(PARAMS, THERE, InitFrom('there', fresh=('table',), widened=('conv_in',), unused=('old',)))['net']
  np.testing.assert_array_equal(got['conv_in'], [[2, 2, 2, 2, 0, 0, 0, 0]] * 3)
  np.testing.assert_array_equal(got['table'], np.full((5, 2), 7))
  np.testing.assert_array_equal(got['out'], [1, 1])


def test_what_does_not_fit_is_listed():
  with pytest.raises(ValueError, match=r'in 3 arrays: net/conv_in 3x8, there 3x4; net/table .* net/old unused\. Name'):
    merged(PARAMS, THERE, InitFrom('there'))
  many = {'net': {f'a{i}': jnp.ones(1) for i in range(9)}}
  with pytest.raises(ValueError, match=r'in 9 arrays: net/a0 1, there none; .*net/a4 1, there none and 4 more'):
    merged(many, {'net': {}}, InitFrom('there'))
  narrow = {'net': {'conv_in': np.ones((3, 16))}}
  with pytest.raises(ValueError, match='conv_in 3x8, there 3x16'):
    merged({'net': {'conv_in': jnp.ones((3, 8))}}, narrow, InitFrom('there', widened=('conv_in',)))


def test_frozen_networks_take_the_same_patterns_and_errors(tmp_path, monkeypatch):
  wanted = {'net': {'conv_in': np.zeros((3, 8)), 'table': np.zeros((9, 2)), 'out': np.zeros(2)}}
  objective = toys.objective()._replace(init=lambda key, frozen, batch: {'params': jax.tree.map(jnp.asarray, wanted)})
  monkeypatch.setattr(init_from, 'read', lambda path, **options: THERE)
  patterns = InitFrom('there', widened=('conv_in',), unused=('old',))
  made = init_from.later(patterns, objective, {})['net'].load()
  np.testing.assert_array_equal(made['conv_in'], [[2, 2, 2, 2, 0, 0, 0, 0]] * 3)
  assert isinstance(made['out'], np.ndarray)
  with pytest.raises(ValueError, match=r'there does not fit this run in 2 arrays: net/conv_in 3x8, there 3x4; net/old'):
    init_from.later('there', objective, {})['net'].load()
  with pytest.raises(ValueError, match='table cannot be fresh'):
    init_from.later(InitFrom('there', fresh=('table',)), objective, {})


def test_published_weights_are_read_from_their_folder(tmp_path):
  net = DiT(patch=2, depth=1, width=32, heads=2, num_classes=3)
  args = jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), {'label': jnp.zeros(1, jnp.int32)}
  params = jax.tree.map(lambda x: x + 0.1, jax.jit(net.init)(jax.random.key(0), *args)['params'])
  published.save(Pretrained(net, params, Meta({'sample_size': 4})), tmp_path / 'dit')
  got = init_from.read(tmp_path / 'dit', trained=['net'])
  jax.tree.map(np.testing.assert_array_equal, got['net'], params)
  lazy = init_from.from_source(tmp_path / 'dit', dtype=jnp.bfloat16)
  assert {type(leaf) for leaf in jax.tree.leaves(lazy.load())} == {Unread}
  with pytest.raises(
    ValueError, match=r'does not fit this run in \d+ arrays: net/blocks/attention/out/bias a number, there 1x32'
  ):
    merged({'net': {'blocks': {'attention': {'out': {'bias': jnp.ones(())}}}}}, got, InitFrom('there'))
  placed = _place({'teacher': lazy})['teacher']
  assert {leaf.dtype for leaf in jax.tree.leaves(placed)} == {jnp.dtype(jnp.bfloat16)}
  with pytest.raises(ValueError, match='goes to one of net, autoencoder, generator; this run trains judge'):
    init_from.read(tmp_path / 'dit', trained=['judge'])


def test_checkpoints_of_the_original_code_are_read_by_the_network_that_is_trained(tmp_path, monkeypatch):
  with np.load(GOLDEN / 'dit_tiny.npz') as arrays:
    tensors = {f'module.{name[3:]}': array for name, array in arrays.items() if name.startswith('sd/')}
  content = {'model': {name: array + 1 for name, array in tensors.items()}, 'ema': tensors, 'opt': {}, 'args': None}
  del content['model']['module.pos_embed']  # fixed; +1 would be refused
  monkeypatch.setattr('jaxgen.pretrained.torch_file.read', lambda path: content)
  (tmp_path / '0100000.pt').touch()

  def start(net, average=None, fresh=()):
    args = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), {'label': jnp.zeros(1, jnp.int32)}
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)['params']
    params = {'net': jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)}
    source = InitFrom(tmp_path / '0100000.pt', average=average, fresh=fresh)
    return init_from.initialised(params, source, networks={'net': net})['net']

  net = DiT(patch=2, depth=3, width=48, heads=4, num_classes=10, learn_sigma=True)
  kernel = tensors['module.blocks.1.attn.proj.weight'].T
  np.testing.assert_array_equal(start(net)['blocks']['attention']['out']['kernel'][1].reshape(48, 48), kernel)
  model = start(net, 'model')['blocks']['attention']['out']['kernel'][1]
  np.testing.assert_array_equal(model.reshape(48, 48), kernel + 1)
  flow = net.clone(num_classes=3, learn_sigma=False)  # other classes and channels: they start anew
  found = start(flow, fresh=('label_embed', 'final/linear'))
  (labels,) = jax.tree.leaves(found['label_embed'])
  assert labels.shape == (4, 48) and not labels.any()
  np.testing.assert_array_equal(found['time_embed']['in']['kernel'], start(net)['time_embed']['in']['kernel'])
  with pytest.raises(ValueError, match='net/final/linear'):
    start(flow, fresh=('label_embed',))
  with pytest.raises(ValueError, match="no state dict 'average'; its parts with tensors are model, ema"):
    start(net, 'average')
  with pytest.raises(ValueError, match='for DiT and for U-Nets without text, and this run trains Dense'):
    original.params_like(tmp_path / '0100000.pt', nn.Dense(3), {})


def test_the_program_starts_from_a_run_and_says_what_goes_together(taught, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr('jaxgen.distributed.start', lambda *_: None)
  config = ['train', '--config', 'tests/tiny_config.py', '--config.steps=2']
  assert program.main([*config, '--workdir', str(tmp_path / 'a')]) == 0
  assert program.main([*config, '--workdir', str(tmp_path / 'b'), '--init-from', str(tmp_path / 'a')]) == 0
  assert program.main([*config, '--workdir', str(tmp_path / 'c'), '--init-fresh', 'x']) == 2
  assert 'go with --init-from' in capsys.readouterr().err


# Frozen networks


def test_a_frozen_network_is_read_when_it_is_placed_and_shapes_come_first():
  read = []
  tree = {'kernel': np.arange(32, dtype=np.float32).reshape(8, 4), 'steps': np.int32(3)}
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)
  lazy = Frozen(shapes, lambda: read.append(1) or tree, lambda: 'hash', jnp.bfloat16)
  stage = as_stages(toys.experiment(frozen={'teacher': lazy}))[0]
  abstract_state(stage)
  assert not read
  assert frozen_networks.shapes(stage.frozen)['teacher']['kernel'].dtype == jnp.bfloat16
  placed = _place(stage.frozen)['teacher']
  np.testing.assert_array_equal(placed['kernel'].astype(jnp.float32), tree['kernel'])
  assert placed['steps'].dtype == jnp.int32
  assert len({shard.data.shape for shard in placed['kernel'].addressable_shards}) == 1
  assert placed['kernel'].addressable_shards[0].data.size < 32


def test_a_run_does_not_resume_on_another_frozen_network(tmp_path):
  one, other = {'w': np.ones(3)}, {'w': np.array([1.0, 1.0, 2.0])}
  make = lambda tree: toys.experiment(frozen={'base': tree}, steps=2)  # noqa: E731
  train(make(one), tmp_path / 'run')
  train(make(one)._replace(steps=3), tmp_path / 'run')
  with pytest.raises(ValueError, match=r'holds another run: frozen_base was .*, is '):
    train(make(other)._replace(steps=4), tmp_path / 'run')
  now = identity(as_stages(make(one))[0], {})
  check_identity({key: value for key, value in now.items() if key != 'frozen_base'}, now, tmp_path)  # an older run
  assert tree_hash({'a': np.ones(2), 'b': np.zeros(1)}) == tree_hash({'b': np.zeros(1), 'a': np.ones(2)})
  assert frozen(one).hash() != frozen(other).hash() != tree_hash({'w': np.ones(3, np.float32)})
