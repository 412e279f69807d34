"""Control branches, images as prompts, new tokens, edited prompts: diffusers' answers, and what starts as the base."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen.adapters import controlnet, ip_adapter, textual_inversion
from jaxgen.adapters.beside import beside, over
from jaxgen.cli import edit
from jaxgen.data.dataset import Dataset
from jaxgen.data.prior import with_prior
from jaxgen.generation import null_text
from jaxgen.generation.local_blend import Blend, attention_maps, blended, mask_of, words_of
from jaxgen.generation.prompt_to_prompt import aligned, edited_prompts
from jaxgen.init_from import InitFrom, merged
from jaxgen.models.controlnet import GUESS, Controlled
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.pretrained import diffusers_unet, folder, published, safetensors_file
from jaxgen.processes import parameterisation
from jaxgen.processes.process import Prediction
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.ddim_inversion import ddim_inversion

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN / 'adapters.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def unet(tmp_path_factory):
  """A U-Net of diffusers, and what it is asked."""
  path = tmp_path_factory.mktemp('unet')
  with np.load(GOLDEN / 'diffusers_unet_condition.npz') as file:
    arrays = dict(file)
  tensors = {name[3:]: np.float32(array) for name, array in arrays.items() if name.startswith('sd/')}
  folder.write(path, json.loads(str(arrays['config'])), tensors)
  x = jnp.asarray(arrays['x']).transpose(0, 2, 3, 1)
  return published.load(path), x, jnp.asarray(arrays['t']), {'text': jnp.asarray(arrays['text'])}


def _close(ours, theirs):
  np.testing.assert_allclose(np.asarray(ours).transpose(0, 3, 1, 2), theirs, rtol=0, atol=1e-4)


def _part(golden, prefix):
  return {name.removeprefix(prefix): np.float32(array) for name, array in golden.items() if name.startswith(prefix)}


def test_a_controlnet_answers_as_in_diffusers_and_goes_both_ways(unet, golden, tmp_path):
  loaded, x, t, cond = unet
  config = json.loads(str(golden['control/config'])) | {'_class_name': controlnet.CLASS}
  tensors = _part(golden, 'control/sd/')
  folder.write(tmp_path / 'in', config, tensors)
  branch = controlnet.load(tmp_path / 'in')
  net = Controlled(loaded.net, (branch.net,))
  params = {**loaded.params, 'controls_0': branch.params}
  picture = jnp.asarray(golden['control/picture']).transpose(0, 2, 3, 1)
  run = jax.jit(
    lambda params, scale: net.apply({'params': params}, x, t, {**cond, 'control': picture, 'control_scale': scale})
  )
  residuals = len([name for name in branch.params if name.startswith('zero_')])
  guess = np.logspace(-1, 0, residuals)
  for name, scale in {'out': np.ones(residuals), 'half': np.full(residuals, 0.5), 'guess': guess}.items():
    assert np.abs(golden[f'control/{name}'] - golden['base/out']).max() > 0.05
    _close(run(params, jnp.tile(jnp.float32(scale), (len(x), 1))), golden[f'control/{name}'])
  _close(run(params, jnp.zeros((len(x), residuals))), golden['base/out'])
  of_unet = diffusers_unet.write(loaded.net, loaded.params, loaded.meta)
  controlnet.save(tmp_path / 'out', branch.net, branch.params, of_unet.config, of_unet.leaves)
  back = safetensors_file.read(tmp_path / 'out' / f'{folder.STEM}.safetensors')
  assert back.keys() == tensors.keys()
  jax.tree.map(np.testing.assert_array_equal, back, tensors)
  assert controlnet.load(tmp_path / 'out').net == branch.net
  with pytest.raises(ValueError, match='control is 8x12; for images or latents of 8x12 it must be 16x24'):
    jax.eval_shape(net.apply, {'params': params}, x, t, {**cond, 'control': picture[:, ::2, ::2]})


def test_a_fresh_control_branch_is_what_is_trained_and_says_nothing(unet):
  loaded, x, t, cond = unet
  branch = controlnet.ControlNet(loaded.net, hint=(4,), strides=0)
  net, with_control = Controlled(loaded.net, (branch,)), {**cond, 'control': jnp.ones((*x.shape[:3], 3))}
  added = controlnet.control()
  make = lambda key: {'net': net.init(key, x, t, with_control)['params']}  # noqa: E731
  trained = jax.eval_shape(lambda key: added.init(key, make), jax.random.key(0))
  assert set(trained['control']['net']) == {'controls_0'}
  params, _ = added.join(trained, {'net': loaded.params})
  assert set(params['net']) == {*loaded.params, 'controls_0'}
  first = jax.jit(branch.init)(jax.random.key(0), x, t, with_control)['params']
  last = [tree for name, tree in first.items() if name.startswith('zero_')] + [first['hint']['out']]
  assert len(last) > 5
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(last))  # with no residual the numbers are the base's, above
  assert len(GUESS) == 13


@pytest.mark.parametrize('kind', ['basic', 'plus'])
def test_an_ip_adapter_answers_as_in_diffusers_and_goes_both_ways(kind, unet, golden, tmp_path):
  loaded, x, t, cond = unet
  tensors = _part(golden, f'{kind}/file/')
  safetensors_file.write(tmp_path / 'in.safetensors', tensors, metadata={})
  adapter = ip_adapter.read(tmp_path / 'in.safetensors', loaded.net)
  params, seen = over(loaded.params, adapter.net), jnp.asarray(golden[f'{kind}/seen'])

  def answer(params, projection, scale):
    tokens = adapter.projection.apply({'params': projection}, seen)
    return loaded.net.apply({'params': params}, x, t, {**cond, 'image_prompt': tokens, 'image_prompt_scale': scale})

  run = jax.jit(answer)
  for name, scale in {'out': 1.0, 'half': 0.5}.items():
    assert np.abs(golden[f'{kind}/{name}'] - golden['base/out']).max() > 0.05
    _close(run(params, adapter.params, jnp.full(len(x), scale)), golden[f'{kind}/{name}'])
  tree = {ip_adapter.PROJECTION: adapter.params, 'net': adapter.net}
  ip_adapter.write(tmp_path / 'out.safetensors', loaded.net, adapter.projection, tree)
  jax.tree.map(np.testing.assert_array_equal, safetensors_file.read(tmp_path / 'out.safetensors'), tensors)
  lost = {name: array for name, array in tensors.items() if name != 'ip_adapter.1.to_k_ip.weight'}
  safetensors_file.write(tmp_path / 'lost.safetensors', lost, metadata={})
  with pytest.raises(ValueError, match=r'1 missing: ip_adapter\.1\.to_k_ip'):
    ip_adapter.read(tmp_path / 'lost.safetensors', loaded.net)


def test_what_is_beside_the_base_is_trained_and_the_rest_is_frozen():
  make = lambda key: {'net': {'old': {'kernel': jnp.ones(2)}, 'new': {'kernel': jnp.zeros(3)}}}  # noqa: E731
  added = beside('/new/', name='mine')
  trained = added.init(jax.random.key(0), make)
  assert jax.tree.map(jnp.shape, trained) == {'mine': {'net': {'new': {'kernel': (3,)}}}}
  params, _ = added.join(trained | {'extra': 1}, {'net': {'old': {'kernel': 5}}})
  assert set(params['net']) == {'old', 'new'} and params['net']['old']['kernel'] == 5 and params['extra'] == 1
  with pytest.raises(ValueError, match=r"'nowhere' is found in no parameter; the paths are like net/new/kernel"):
    beside('nowhere', name='mine').init(jax.random.key(0), make)


def test_new_tokens_are_read_from_every_file_and_written_again(tmp_path):
  rows = np.arange(6, dtype=np.float32).reshape(2, 3)
  of_a1111 = textual_inversion.read(GOLDEN / 'embedding_a1111.pt')
  assert of_a1111.token == 'cat'
  np.testing.assert_array_equal(of_a1111.rows['text_encoder'], rows)
  for name, content, token in (
    ('diffusers', {'<cat>': rows}, '<cat>'),
    ('one', {'<cat>': rows[0]}, '<cat>'),
    ('kohya', {'emb_params': rows}, '<kohya>'),
    ('sdxl', {'clip_l': rows, 'clip_g': rows[:, :2]}, '<sdxl>'),
  ):
    safetensors_file.write(tmp_path / f'{name}.safetensors', content, metadata={})
    found = textual_inversion.read(tmp_path / f'{name}.safetensors')
    assert found.token == token
    textual_inversion.write(tmp_path / 'again.safetensors', found)
    again = safetensors_file.read(tmp_path / 'again.safetensors')
    for array, other in zip(found.rows.values(), again.values(), strict=name != 'sdxl'):
      assert array.ndim == 2 and (name == 'sdxl' or np.array_equal(array, other))
  with pytest.raises(ValueError, match='rows of 3 features; this text encoder has 4: it is for another one'):
    textual_inversion.check(rows, width=4)
  with pytest.raises(ValueError, match='not finite'):
    textual_inversion.check(rows * np.nan)
  safetensors_file.write(tmp_path / 'bad.safetensors', {'a': rows, 'b': rows}, metadata={})
  with pytest.raises(ValueError, match='no embedding of one token: it holds a, b'):
    textual_inversion.read(tmp_path / 'bad.safetensors')


def test_new_rows_alone_have_a_gradient_and_the_table_is_as_it_was():
  encoder = TextEncoder(vocabulary=5, width=4, depth=1, heads=1)
  ids = jnp.array([[1, 5, 2], [6, 3, 0]])
  table = {'text': jax.jit(encoder.init)(jax.random.key(0), ids)['params'], 'net': {}}
  start = textual_inversion.start_as([2, 3], vectors=2)
  added = textual_inversion.textual_inversion(start, width=4, table=lambda frozen: frozen['text']['table']['embedding'])
  trained = added.init(jax.random.key(0), lambda key: {})

  def loss(trained, ids):
    params, _ = added.join(trained, table)
    return jnp.sum(encoder.apply({'params': params['text']}, ids, rows=params['tokens']['rows'])['text'] ** 3)

  run = jax.jit(jax.value_and_grad(loss))
  value, gradient = run(trained, ids)
  same, _ = run(trained, jnp.where(ids >= 5, ids - 3, ids))  # rows that start as the words 2 and 3
  np.testing.assert_allclose(value, same, rtol=1e-6)
  assert set(trained) == set(gradient) == {'tokens'} and np.abs(gradient['tokens']['offset']).max(axis=1).all()


def test_a_prior_takes_turns_and_weighs_its_rows():
  def dataset(name, num):
    return Dataset(name, 'train', list(range(num)), lambda i: {'image': np.full((2, 2, 3), i, np.float32)}, name)

  made, describe = with_prior(
    (dataset('me', 2), lambda record, rng: 'sks'), (dataset('people', 3), lambda record, rng: 'person'), weight=0.5
  )
  records = [made.read(i) for i in range(made.num_examples)]
  assert [float(r['image'][0, 0, 0]) for r in records] == [0, 0, 1, 1, 0, 2]
  assert [float(r['weight']) for r in records] == [1, 0.5] * 3
  assert [describe(r, np.random.default_rng(0)) for r in records[:2]] == ['sks', 'person']
  with pytest.raises(ValueError, match='me has 0 pictures and people 3; both need some'):
    with_prior((dataset('me', 0), describe), (dataset('people', 3), describe))


def test_prompts_are_aligned_by_word():
  swap = aligned([9, 1, 2, 3, 8, 0], [9, 1, 5, 3, 8, 0])
  np.testing.assert_array_equal(swap.blend, [[0] * 6, [1] * 6])
  np.testing.assert_array_equal(swap.mapping[1], np.eye(6))
  longer = aligned([9, 1, 2, 8, 0, 0], [9, 1, 5, 6, 8, 0])  # one token in the place of two others
  np.testing.assert_array_equal(longer.mapping[1][2], [0, 0, 0.5, 0.5, 0, 0])
  assert longer.mapping[1][3, 4] == 1
  refined = aligned([9, 1, 2, 8, 0, 0], [9, 1, 7, 2, 8, 0], weights={2: 3.0})
  np.testing.assert_array_equal(refined.blend[1], [1, 1, 0, 1, 1, 1])
  np.testing.assert_array_equal(refined.scale[1], [1, 1, 3, 1, 1, 1])
  with pytest.raises(ValueError, match='rows of 1 and 2 tokens'):
    aligned([1], [1, 2])


def test_an_edit_is_blended_in_where_its_words_are():
  words = words_of([9, 1, 2, 8], [9, 1, 5, 8])
  np.testing.assert_array_equal(words, [[0, 0, 1, 0]] * 2)
  np.testing.assert_array_equal(words_of([9, 1, 8, 0], [9, 1, 7, 8]), [[0, 0, 0, 0], [0, 0, 1, 0]])
  with pytest.raises(ValueError, match='the two prompts have the same words'):
    words_of([9, 1], [1, 9])
  maps = np.zeros((2, 8, 8, 4), np.float32)
  maps[0, 2, 2, 2], maps[1, 6, 6, 2], maps[:, :, :, 1] = 1, 0.5, 5
  blend = Blend(lambda x_t, t, cond: jnp.asarray(maps), words, until=0.2)
  mask = np.asarray(mask_of(jnp.asarray(maps), blend))
  wanted = np.zeros((8, 8), bool)
  wanted[1:4, 1:4] = wanted[5:8, 5:8] = True
  np.testing.assert_array_equal(mask, [wanted, wanted])
  x = jnp.arange(2.0)[:, None, None, None] * jnp.ones((2, 8, 8, 3))
  made = blended(Prediction(x, 2 * x, None), x, jnp.full(2, 0.5), {}, blend)
  np.testing.assert_array_equal(made.x0[1, :, :, 0], wanted)
  np.testing.assert_array_equal(made.eps[1, :, :, 0], 2 * wanted)
  assert not made.x0[0].any()
  assert blended(Prediction(x, x, None), x, jnp.full(2, 0.9), {}, blend).x0[1].all(), 'early, all may change'


def test_maps_are_those_of_attention_to_the_prompt(unet):
  loaded, x, t, cond = unet
  maps = jax.jit(lambda cond: attention_maps(loaded.net, loaded.params, lambda t: t)(x, t, cond))(cond)
  assert maps.shape == (*x.shape[:3], cond['text'].shape[1])
  np.testing.assert_allclose(maps.sum(axis=-1), np.ones(maps.shape[:3]), rtol=1e-4)


@pytest.mark.slow
def test_an_edit_keeps_all_of_the_source_nothing_of_it_or_only_its_share_of_time(unet):
  loaded, x, _, cond = unet
  process = rectified_flow()
  pair = jnp.repeat(x[:1], 2, axis=0)
  text = {'text': cond['text']}
  space = parameterisation.velocity(process)

  def denoise(x_t, t, cond):
    return space.predict(loaded.net.apply({'params': loaded.params}, x_t, 1000 * t, cond), x_t, t)

  k = cond['text'].shape[1]
  edit = aligned(range(k), range(k))

  @jax.jit
  def answer(t):
    made = edited_prompts(edit, scale=1.0, cross=0.5, itself=0.5)(denoise, process, lambda names: {})
    plain = denoise(pair, jnp.full(2, t), text)
    return made(pair, jnp.full(2, t), text).x0, plain.x0

  early, plain = answer(0.75)
  late, plain_late = answer(0.25)
  np.testing.assert_allclose(late, plain_late, rtol=0, atol=1e-5)  # its time is over
  np.testing.assert_allclose(early[0], plain[0], rtol=0, atol=1e-5)  # the source is not touched
  assert np.abs(early[1] - plain[1]).max() > 1e-3


def test_null_text_inversion_comes_back_to_the_image_where_guidance_strays():
  process = rectified_flow()
  space = parameterisation.velocity(process)

  def denoise(x_t, t, cond):
    return space.predict(0.3 * jnp.sin(3 * x_t) + cond['text'][:, None, None], x_t, t)

  rng = np.random.default_rng(0)
  x0 = jnp.asarray(rng.standard_normal((2, 2, 2, 3)), jnp.float32)
  cond, null = {'text': jnp.ones((2, 3))}, {'text': jnp.zeros(3)}
  times, scale = grids.uniform(6), 4.0

  def far(iterations):
    found = null_text.invert(
      denoise, process, x0, times, cond=cond, null=null, scale=scale, iterations=iterations, learning_rate=0.1,
      inverse=ddim_inversion,
    )  # fmt: skip
    again = null_text.resampled(denoise, process, found, times, cond=cond, scale=scale)
    return jnp.mean((again - x0) ** 2), found.nulls['text']

  strays, _ = jax.jit(lambda: far(0))()
  back, nulls = jax.jit(lambda: far(60))()
  assert nulls.shape == (6, 2, 3)
  assert back < 0.05 * strays and strays > 0.1, (back, strays)


def test_a_control_branch_starts_as_a_copy_of_the_encoder():
  branch = {name: {'kernel': jnp.zeros(2)} for name in ('conv_in', 'zero_0')} | {
    'hint': {'in': {'kernel': jnp.zeros(2)}}
  }
  trees = {
    'net': {name: {'kernel': np.ones(2)} for name in ('conv_in', 'decoder_0_block', 'norm_out')},
    'text': np.ones(3),
  }
  made = merged({'control': {'net': {'controls_0': branch}}}, trees, InitFrom('base', **controlnet.COPY))
  made = made['control']['net']['controls_0']
  assert (
    made['conv_in']['kernel'].all() and not made['zero_0']['kernel'].any() and not made['hint']['in']['kernel'].any()
  )
  trees['net'] |= {'encoder_9_block': {'kernel': np.ones(2)}}
  with pytest.raises(ValueError, match='control/net/controls_0/encoder_9_block/kernel unused'):
    merged({'control': {'net': {'controls_0': branch}}}, trees, InitFrom('base', **controlnet.COPY))


def test_a_mask_that_keeps_all_or_nothing_is_refused(tmp_path):
  for value, message in ((255, 'white everywhere: nothing is kept'), (0, 'black everywhere: there is nothing to fill')):
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / 'mask.png')
    with pytest.raises(ValueError, match=message):
      edit._mask(tmp_path / 'mask.png', (4, 4, 3), 2)
