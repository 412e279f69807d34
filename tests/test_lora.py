"""LoRA: the base's numbers at step 0, trained by the one step, and diffusers' and peft's answers with the same file."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.adapters import lora, lora_file, lora_names
from jaxgen.adapters.lora import LoRA
from jaxgen.adapters.lora_file import Network
from jaxgen.cli import lora as command
from jaxgen.models.clip import CLIPText
from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.low_rank import LowRank
from jaxgen.models.layers.low_rank import merged as formed
from jaxgen.models.layers.remat import policy
from jaxgen.models.mmdit import MMDiT
from jaxgen.objectives.adapted import adapted
from jaxgen.objectives.conditioning import always
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.optimizers import rates_by_path
from jaxgen.pretrained import clip, folder, published, safetensors_file
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from jaxgen.samplers.sampler import Sampler
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step

GOLDEN = pathlib.Path(__file__).parent / 'golden'
KINDS = ('lora', 'dora', 'loha', 'loha_tucker', 'lokr', 'lokr_both', 'kohya', 'sgm')


@pytest.fixture(scope='module')
def unet(tmp_path_factory):
  """The U-Net of diffusers that the files are of, what it is asked, and the names of its modules."""
  path = tmp_path_factory.mktemp('unet')
  with np.load(GOLDEN / 'diffusers_unet_condition.npz') as file:
    arrays = dict(file)
  folder.write(
    path,
    json.loads(str(arrays['config'])),
    {name[3:]: np.float32(array) for name, array in arrays.items() if name.startswith('sd/')},
  )
  loaded = published.load(path)
  x = jnp.asarray(arrays['x']).transpose(0, 2, 3, 1)
  cond = {'text': jnp.asarray(arrays['text'])}
  run = jax.jit(lambda params: loaded.net.apply({'params': params}, x, jnp.asarray(arrays['t']), cond))
  make = lambda key: {'net': loaded.net.init(key, x, jnp.zeros(len(x)), cond)['params']}  # noqa: E731
  known = within(lora.kernels(make), 'net')
  return loaded, run, known, lora_names.network(loaded.net, loaded.params, known)


def within(known, name):
  return {path.removeprefix(f'{name}/'): kernel for path, kernel in known.items() if path.startswith(f'{name}/')}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """The files of tests/lora_models.py by kind, and the answers."""
  path = tmp_path_factory.mktemp('files')
  with np.load(GOLDEN / 'lora.npz') as file:
    arrays = dict(file)
  for kind in KINDS:
    prefix = f'{kind}/file/'
    tensors = {name.removeprefix(prefix): np.float32(a) for name, a in arrays.items() if name.startswith(prefix)}
    assert tensors, kind
    safetensors_file.write(path / f'{kind}.safetensors', tensors, metadata={'format': 'pt'})
  return {kind: path / f'{kind}.safetensors' for kind in KINDS}, {k: arrays[f'{k}/out'] for k in (*KINDS, 'base')}


def _updates(path, network, *, alpha=None):
  modules = lora_file.read(path)
  if alpha is not None:  # peft keeps it in a configuration of its own, and scales whole products by it too
    whole = [parts for parts in modules.values() if set(parts) == {'lokr_w1', 'lokr_w2'}]
    modules = {name: parts | {'alpha': np.float32(alpha)} for name, parts in modules.items()}
    for parts in whole:
      parts['lokr_w1'] *= alpha / 2
  return lora_file.assigned(modules, {'net': network}, source='file')['net']


@pytest.mark.parametrize('kind', KINDS)
def test_a_merged_file_answers_as_in_diffusers_and_peft(kind, unet, files):
  loaded, run, _, network = unet
  paths, outs = files
  updates = _updates(paths[kind], network, alpha=None if kind in ('kohya', 'sgm') else 3)
  params = lora_file.merged(loaded.params, updates, network.names)
  assert np.abs(outs[kind] - outs['base']).max() > 0.2
  np.testing.assert_allclose(np.asarray(run(params)).transpose(0, 3, 1, 2), outs[kind], rtol=0, atol=1e-4)
  if kind != 'dora':
    back = lora_file.merged(params, updates, network.names, weight=-1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), back, loaded.params)


def test_a_file_is_a_lora_of_low_rank_kernels_and_is_written_as_it_came(unet, files, tmp_path):
  loaded, run, known, network = unet
  paths, outs = files
  updates = _updates(paths['kohya'], network)
  tree = lora_file.tree(updates, network.names, known)
  joined = lora.joined(loaded.params, tree)
  assert isinstance(joined['middle_0_attention']['in']['kernel'], LowRank)
  np.testing.assert_allclose(np.asarray(run(formed(joined))).transpose(0, 3, 1, 2), outs['kohya'], rtol=0, atol=1e-4)
  parts = lora_file.tensors(tree, network.names[0], known)
  lora_file.write(tmp_path / 'again.safetensors', {'unet': parts}, kohya=True)
  first, again = (safetensors_file.read(path) for path in (paths['kohya'], tmp_path / 'again.safetensors'))
  assert first.keys() == again.keys()
  again = {name: array.reshape(first[name].shape) for name, array in again.items()}
  jax.tree.map(np.testing.assert_array_equal, first, again)
  lora_file.write(tmp_path / 'diffusers.safetensors', {'unet': parts})
  of_diffusers = tmp_path / 'diffusers.safetensors'
  assert 'unet.mid_block.attentions.0.proj_in.lora_A.weight' in safetensors_file.read(of_diffusers)
  merged = lora_file.merged(loaded.params, _updates(of_diffusers, network), network.names)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), merged, formed(joined))


def test_several_at_once_are_the_sum_of_each_with_its_weight(unet, files):
  loaded, _, known, network = unet
  paths, _ = files
  one, two = (lora_file.tree(_updates(paths[kind], network), network.names, known) for kind in ('kohya', 'sgm'))
  both = formed(lora.joined(loaded.params, lora.summed([(one, 0.8), (two, -0.5)])))
  step = lora_file.merged(loaded.params, _updates(paths['kohya'], network), network.names, weight=0.8)
  step = lora_file.merged(step, _updates(paths['sgm'], network), network.names, weight=-0.5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), both, step)


TEXT = CLIPText(width=8, depth=3, heads=2, vocabulary=20, context=5, end_of_text=19)


def test_ranks_of_a_scanned_text_encoder_may_differ_by_layer_and_by_product(tmp_path):
  known = within(lora.kernels(lambda key: {'text': TEXT.init(key, jnp.zeros((1, 5), jnp.int32))['params']}), 'text')
  leaves = clip.text_leaves(TEXT)
  rng = np.random.default_rng(0)
  shapes = {
    'text_model.encoder.layers.0.self_attn.q_proj': (2, 8, 8),
    'text_model.encoder.layers.0.self_attn.v_proj': (3, 8, 8),
    'text_model.encoder.layers.2.self_attn.out_proj': (1, 8, 8),
    'text_model.encoder.layers.1.mlp.fc1': (4, 8, 32),
  }
  modules = {
    name: {
      'down': np.float32(rng.standard_normal((rank, ins))),
      'up': np.float32(rng.standard_normal((outs, rank))),
      'alpha': np.float32(rank),
    }
    for name, (rank, ins, outs) in shapes.items()
  }
  lora_file.write(tmp_path / 'te.safetensors', {'text_encoder': modules}, kohya=True)
  networks = {'text_encoder': Network((leaves,))}
  updates = lora_file.assigned(lora_file.read(tmp_path / 'te.safetensors'), networks, source='f')['text_encoder']
  tree = lora_file.tree(updates, [leaves], known)
  assert tree['blocks']['attention']['qkv']['kernel']['a'].shape == (3, 8, 5)
  back = lora_file.tensors(tree, leaves, known)
  assert back.keys() == modules.keys()
  jax.tree.map(np.testing.assert_array_equal, back, modules)
  shapes = jax.eval_shape(TEXT.init, jax.random.key(1), jnp.zeros((1, 5), jnp.int32))['params']
  params = jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape)), shapes)
  merged = lora_file.merged(params, updates, [leaves])
  joined = lora.joined(params, tree)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), formed(joined), merged)


def test_flux_files_of_fused_products_are_those_of_diffusers_split():
  width, rng = 4, np.random.default_rng(0)
  aliases = lora_names.flux(width, depth=1, single=1)
  down, up = np.float32(rng.standard_normal((2, width))), np.float32(rng.standard_normal((7 * width, 2)))
  leaves = {
    f'{i}/kernel': lora_file.Leaf((target.name,), (width, 4), (1, 0), (4, width))
    for i, target in enumerate(target for targets in aliases.values() for target in targets)
  }
  network = Network([leaves], aliases)
  modules = {'lora_unet_single_blocks_0_linear1': {'down': down, 'up': up, 'alpha': np.float32(1)}}
  updates = lora_file.assigned(modules, {'net': network}, source='f')['net']
  assert [update.target.name.split('.')[-2] for update in updates] == ['to_q', 'to_k', 'to_v', 'proj_mlp']
  mlp = lora_file.apply(updates[3], np.zeros((4 * width, width)))
  np.testing.assert_allclose(mlp, 0.5 * (up @ down)[3 * width :], rtol=1e-6)
  modules = {'diffusion_model.final_layer.adaLN_modulation.1': {'down': down, 'up': up[: 2 * width]}}
  (update,) = lora_file.assigned(modules, {'net': network}, source='f')['net']
  swapped = lora_file.apply(update, np.zeros((2 * width, width)))
  np.testing.assert_allclose(swapped, np.concatenate([(up @ down)[width : 2 * width], (up @ down)[:width]]), rtol=1e-6)


NET = MMDiT(patch=2, depth=3, width=16, heads=2)


@pytest.fixture(scope='module')
def trained():
  """A LoRA's objective on a small MMDiT, its state before and after some steps, its frozen networks and the batch."""
  base = diffusion(
    NET,
    rectified_flow(),
    shape=(4, 4, 3),
    parameterisation=parameterisation.velocity,
    times=times.uniform(),
    sampler=Sampler(euler, grids.uniform(2)),
    conditioner=always('text', 'pooled'),
  )
  rng = np.random.default_rng(0)
  batch = {
    name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for name, shape in {'image': (4, 4, 4, 3), 'text': (4, 3, 5), 'pooled': (4, 6)}.items()
  }
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(lambda key: base.init(key, {}, batch)['params'], jax.random.key(0))
  params = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
  spec = LoRA(rank=2, alpha=4, dropout=0.25, on=(lora.ATTENTION, 'mlp/in$'))
  objective = adapted(base, lora.lora(spec), remat=policy('dots'))
  optimizers = {lora.NAME: optax.adam(0.03)}
  state = jax.jit(lambda key: init_state(objective, optimizers, {}, batch, key, frozen=params))(jax.random.key(1))
  step = jax.jit(make_train_step(objective, optimizers, {}))
  states = [state]
  for i in range(4):
    state, _ = step(state, params, batch, jax.random.fold_in(jax.random.key(2), i))
    states.append(state)
  return base, objective, states, params, batch, spec


def test_step_0_is_the_base_and_training_changes_the_lora_alone(trained):
  base, objective, states, params, batch, spec = trained
  first, last = states[0].params, states[-1].params
  assert set(first) == {lora.NAME}
  count = sum(leaf.size for leaf in jax.tree.leaves(first))
  assert 0 < count < 0.3 * sum(leaf.size for leaf in jax.tree.leaves(params))
  cond, t = {name: batch[name] for name in ('text', 'pooled')}, jnp.full(4, 0.5)
  of_base = jax.jit(lambda params: base.denoising.denoiser(params, {})(batch['image'], t, cond).x0)
  adapted_x0 = jax.jit(lambda mine, base: objective.denoising.denoiser(mine, base)(batch['image'], t, cond).x0)
  want, got = of_base(params), adapted_x0(last, params)
  np.testing.assert_allclose(adapted_x0(first, params), want, rtol=0, atol=1e-6)
  assert np.abs(got - want).max() > 1e-3
  merged = formed(lora.joined(params['net'], last[lora.NAME]['net'], scale=spec.scale))
  np.testing.assert_allclose(of_base({'net': merged}), got, rtol=0, atol=1e-5)


def test_a_trained_lora_goes_through_a_file_of_its_own_names(trained, tmp_path):
  base, _, states, params, batch, spec = trained
  known = within(lora.kernels(lambda key: base.init(key, {}, batch)['params']), 'net')
  own = lora.scaled(states[-1].params[lora.NAME]['net'], params['net'], spec.scale)
  network = lora_names.network(None, params['net'], known)
  lora_file.write(tmp_path / 'it.safetensors', {'transformer': lora_file.tensors(own, network.names[0], known)})
  modules = lora_file.read(tmp_path / 'it.safetensors')
  assert 'transformer.blocks.1.attention.image_qkv' in modules
  updates = lora_file.assigned(modules, {'net': network}, source='it')['net']
  merged = lora_file.merged(params['net'], updates, network.names)
  wanted = formed(lora.joined(params['net'], own))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), merged, wanted)


def test_rates_differ_by_path():
  params = {'net': {'first': {'kernel': {'a': jnp.ones(2)}}, 'last': {'kernel': {'a': jnp.ones(2)}}}}
  optimizer = rates_by_path(optax.sgd(1.0), (('first', 0.5), ('kernel/a', 0.0)))
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  np.testing.assert_array_equal(updates['net']['first']['kernel']['a'], [-0.5, -0.5])
  assert not updates['net']['last']['kernel']['a'].any()
  bad = rates_by_path(optax.sgd(1.0), (('middle', 0.5),))
  with pytest.raises(ValueError, match=r"the rate of 'middle' is of no parameter; their paths are like net/first"):
    bad.update(params, bad.init(params), params)


@pytest.mark.parametrize('layer', [Linear(3), Conv(3, 1)], ids=['linear', 'convolution'])
def test_dropout_acts_on_the_correction_where_there_is_an_rng(layer):
  x, base = jnp.ones((1, 5, 5, 8)), np.zeros((8, 3), np.float32)
  a, b = np.ones((8, 1), np.float32), np.ones((1, 3), np.float32)
  if isinstance(layer, Conv):
    base, a, b = base[None, None], a[None, None], b[None, None]
  kernel = LowRank(*map(jnp.asarray, (base, a, b, np.float32(1))), 0.5)
  params = {'params': {'kernel': kernel, 'bias': jnp.zeros(3)}}
  np.testing.assert_array_equal(layer.apply(params, x), 8 * np.ones((1, 5, 5, 3)))
  dropped = layer.apply(params, x, rngs={'dropout': jax.random.key(0)})
  assert set(np.unique(dropped)) <= set(range(0, 17, 2)) and np.std(dropped) > 1
  assert abs(np.mean(dropped) - 8) < 2


def _bad(tmp_path, tensors):
  safetensors_file.write(tmp_path / 'bad.safetensors', tensors, metadata={})
  return tmp_path / 'bad.safetensors'


def test_what_is_wrong_with_a_file_is_said_in_one_line(unet, tmp_path):
  loaded, _, _, network = unet
  q = 'unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q'
  down, up = np.ones((2, 8), np.float32), np.ones((8, 2), np.float32)
  good = {f'{q}.lora_A.weight': down, f'{q}.lora_B.weight': up}

  def merge(tensors):
    updates = _updates(_bad(tmp_path, tensors), network)
    return lora_file.merged(loaded.params, updates, network.names)

  merge(good)
  with pytest.raises(
    ValueError, match=r'1 of 2 modules are not of this model .*: unet\.nowhere; it is of another base'
  ):
    merge(good | {'unet.nowhere.lora_A.weight': down, 'unet.nowhere.lora_B.weight': up})
  with pytest.raises(ValueError, match='not finite'):
    merge(good | {f'{q}.lora_B.weight': up * np.nan})
  with pytest.raises(ValueError, match='ranks 0 and 0'):
    merge({f'{q}.lora_A.weight': down[:0], f'{q}.lora_B.weight': up[:, :0]})
  with pytest.raises(ValueError, match='has down and no up'):
    merge({f'{q}.lora_A.weight': down})
  with pytest.raises(ValueError, match=r'is no LoRA file: conv_in\.weight'):
    merge({'conv_in.weight': down})
  with pytest.raises(ValueError, match=r'down \(2, 9\).*is \(8, 8\): it is of another base'):
    merge(good | {f'{q}.lora_A.weight': np.ones((2, 9), np.float32)})
  with pytest.raises(ValueError, match='rank of a LoRA is 0'):
    lora.lora(LoRA(rank=0))
  with pytest.raises(ValueError, match="'nothing' is found in no product; the paths are"):
    lora.matching({'net/a': lora.Kernel((2, 2), 0, 1, False)}, ['nothing'])


def test_a_weight_follows_a_file_and_none_is_merged_twice():
  assert command.parsed('style.safetensors:0.8') == ('style.safetensors', 0.8)
  assert command.parsed('style.safetensors') == ('style.safetensors', 1.0)
  assert command.parsed('a:b/style.safetensors') == ('a:b/style.safetensors', 1.0)
  with pytest.raises(ValueError, match=r'--lora a\.safetensors is given 2 times; give it once'):
    command.check(['a.safetensors', './a.safetensors:0.5'])
