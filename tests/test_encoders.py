"""Text and image encoders: parity with transformers, files in and out, published sizes."""

import importlib.util
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxgen import sharding
from jaxgen.models import bert, clip, dinov2, qwen3, t5
from jaxgen.models.rules import RULES
from jaxgen.pretrained import bert as pretrained_bert
from jaxgen.pretrained import checkpoint_text, folder, layout, networks, safetensors_file, state_dict
from jaxgen.pretrained import clip as pretrained_clip
from tests import transformers_models as peers

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'encoders.npz'
IDS = jnp.zeros((1, 8), jnp.int32)


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


@pytest.fixture(scope='module')
def given():
  return {name: jnp.asarray(array) for name, array in peers.inputs().items()}


def tensors_of(made: layout.Layout) -> dict[str, np.ndarray]:
  return {name: peers.tensor(name, leaf.tensor_shape) for leaf in made.leaves.values() for name in leaf.names}


def config_of(name: str) -> dict:
  kind, _, config = peers.MODELS[name]
  return {'architectures': [kind], **config}


def load(name: str) -> layout.Pretrained:
  made = networks.READERS[peers.MODELS[name][0]](config_of(name))
  return layout.pretrained(made, tensors_of(made), source=name)


def apply(it: layout.Pretrained, *args, **options):
  return jax.jit(lambda params: it.net.apply({'params': params}, *args, **options))(it.params)


def close(got, wanted, tolerance=1e-4):
  """Within `tolerance` of the scale of what was wanted."""
  assert got.shape == wanted.shape
  np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize('name', ['clip_text', 'clip_text_gelu', 'clip_text_legacy'])
@pytest.mark.parametrize('masked', ['', '_masked'])
def test_every_state_of_the_text_tower_is_transformers(golden, given, name, masked):
  out = apply(load(name), given['ids'], mask=given['mask'] if masked else None, skip=1)
  got = {'penultimate': out.hidden, 'last': out.last, 'projected': out.projected, 'normed': out.normed}
  got['pooled'] = out.pooled
  found = {key: golden[f'{name}{masked}/{key}'] for key in got if f'{name}{masked}/{key}' in golden}
  assert len(found) == (5 if name == 'clip_text' else 3)
  for key, wanted in found.items():
    close(got[key], wanted)


def test_every_state_of_the_vision_tower_is_transformers(golden, given):
  out = apply(load('clip_vision'), given['image'], skip=1)
  for key, got in {'penultimate': out.hidden, 'last': out.last, 'pooled': out.pooled}.items():
    close(got, golden[f'clip_vision/{key}'])
  close(out.projected, golden['clip_vision/projected'])


def test_logits_of_both_towers_are_transformers(golden, given):
  out = apply(load('clip'), given['ids'][:2], given['image'])
  close(jnp.exp(out.logit_scale) * out.text @ out.image.T, golden['clip/logits'])


def test_dinov2_is_transformers_at_the_size_of_its_positions_and_at_others(golden, given):
  it = load('dinov2')
  close(apply(it, given['image']), golden['dinov2/pooled'])
  rows, columns = (np.arange(size) * 28 // size for size in (42, 21))
  wide = given['image'][:, rows][:, :, columns]
  close(apply(it, wide), golden['dinov2/wide'])
  with pytest.raises(ValueError, match='patches of 7'):
    apply(it, wide[:, :40])


def test_positions_of_dinov2_are_resized_as_the_original_code_does():
  """By its own ratio, 16.1 of 37, which `interpolate(scale_factor=...)` takes for the coordinates."""
  torch = pytest.importorskip('torch')
  positions = np.random.default_rng(0).normal(size=(37 * 37 + 1, 3)).astype(np.float32)
  grid = torch.tensor(positions[1:].reshape(1, 37, 37, 3)).permute(0, 3, 1, 2)
  wanted = torch.nn.functional.interpolate(grid, scale_factor=16.1 / 37, mode='bicubic').permute(0, 2, 3, 1)
  got = dinov2.resize_positions(jnp.asarray(positions), side=37, rows=16, columns=16, offset=dinov2.OFFSET)
  np.testing.assert_allclose(got[1:], wanted.reshape(-1, 3).numpy(), atol=1e-5)
  np.testing.assert_array_equal(got[0], positions[0])


def test_images_for_dinov2_are_pillows_8_bits():
  from PIL import Image

  pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3)).astype(np.uint8)
  resized = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in pixels]
  wanted = (np.stack(resized) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  got = np.asarray(dinov2.preprocess(jnp.asarray(pixels, jnp.float32) / 127.5 - 1))
  assert np.abs(got - wanted).max() < 1.01 / 255 / 0.224  # one of 255, where Pillow's whole numbers round otherwise
  assert np.mean(np.abs(got - wanted) > 1e-3) < 1e-3


@pytest.mark.parametrize('masked', ['', '_masked'])
def test_t5_is_transformers_up_to_the_last_bucket(golden, given, masked):
  out = apply(load('t5'), given['long'], given['long_mask'] if masked else None)
  close(out, golden[f't5{masked}/last'])


@pytest.mark.parametrize('masked', ['', '_masked'])
def test_bert_is_transformers(golden, given, masked):
  out = apply(load('bert'), given['ids'], given['mask'] if masked else None)
  close(out.last, golden[f'bert{masked}/last'])
  close(out.pooled, golden[f'bert{masked}/pooled'])
  np.testing.assert_allclose(jnp.linalg.norm(out.sentence, axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(('name', 'skip'), [('last', 0), ('penultimate', 1)])
def test_qwen3_is_transformers(golden, given, name, skip):
  it = load('qwen3')
  close(apply(it, given['ids'], skip=skip), golden[f'qwen3/{name}'])


def test_a_token_of_text_sees_none_after_it(given):
  net = load('clip_text')
  ids = given['ids'][:1]
  changed = ids.at[0, 10].set(5)
  before, after = (np.asarray(apply(net, x).last) for x in (ids, changed))
  np.testing.assert_array_equal(before[:, :10], after[:, :10])
  assert np.all(np.abs(before - after)[:, 10:].max(-1) > 1e-4)


def test_new_rows_beside_the_table_are_read_and_alone_get_their_gradient():
  it = load('clip_text')
  ids = jnp.array([[97, 3, 99, 100, 98, 0]])  # 99 and 100 are the first two of no table of 99
  rows = jax.random.normal(jax.random.key(0), (2, 32))
  table = it.params['token_embed']['embedding']
  longer = {**it.params, 'token_embed': {'embedding': np.concatenate([table, rows])}}
  got = apply(it, ids, rows=rows)
  wanted = apply(it._replace(net=it.net.clone(vocabulary=101), params=longer), ids)
  np.testing.assert_allclose(got.pooled, wanted.pooled, rtol=1e-5, atol=1e-5)  # at the end's id, not at the highest
  gradient = jax.jit(jax.grad(lambda r: it.net.apply({'params': it.params}, ids, rows=r).projected.sum()))(rows)
  assert np.all(np.abs(gradient).max(-1) > 0)


def test_relative_buckets_are_half_for_each_direction():
  buckets = t5.relative_buckets(300, 32, 128)
  assert buckets[5, 5] == 0 and buckets[5, 4] == 1 and buckets[5, 6] == 17
  assert buckets[299, 0] == 15 and buckets[0, 299] == 31 and set(np.unique(buckets)) == set(range(32)) - {16}


def count(net, *args) -> int:
  shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
  ('net', 'wanted'),
  [
    (clip.clip('L/14').text.clone(projection=0), 123_060_480),
    (clip.clip('B/32'), 151_277_313),
    (clip.clip('L/14'), 427_616_513),
    (t5.t5_encoder('xxl'), 4_762_310_656),
    (bert.minilm(), 22_713_216),
    (dinov2.DINOv2(), 304_367_616),
    (qwen3.qwen3_4b(), 4_022_468_096),
  ],
)
def test_published_sizes_have_the_published_number_of_parameters(net, wanted):
  image = jnp.zeros((1, 224, 224, 3))
  given = {clip.CLIP: (IDS, image), dinov2.DINOv2: (image,)}.get(type(net), (IDS,))
  assert count(net, *given) == wanted


@pytest.mark.parametrize(
  'name', ['clip_text', 'clip_text_plain', 'clip_vision', 'clip', 't5', 'bert', 'dinov2', 'qwen3']
)
def test_a_folder_goes_out_and_in_bit_for_bit(tmp_path, name):
  made = load(name) if name != 'clip_text_plain' else load('clip_text')
  if name == 'clip_text_plain':
    params = {key: value for key, value in made.params.items() if key != 'projection'}
    made = made._replace(net=made.net.clone(projection=0), params=params)
  digest = networks.save(made, tmp_path)
  again = networks.load(tmp_path)
  assert again.net == made.net and again.meta.hash == digest
  jax.tree.map(np.testing.assert_array_equal, again.params, made.params)


@pytest.mark.parametrize('name', list(peers.MODELS))
def test_transformers_reads_what_is_written_and_the_other_way(tmp_path, name):
  pytest.importorskip('torch')
  if importlib.util.find_spec('transformers') is None:
    pytest.skip('transformers is not installed')
  transformers = peers.import_transformers()
  theirs, ours = tmp_path / 'theirs', tmp_path / 'ours'
  peers.folder(name, theirs, max_shard_size='20KB')
  assert name == 'bert' or (theirs / 'model.safetensors.index.json').exists()
  it = networks.load(theirs)
  jax.tree.map(np.testing.assert_array_equal, it.params, load(name).params)
  networks.save(it, ours)
  _, info = getattr(transformers, peers.MODELS[name][0]).from_pretrained(ours, output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys'] and not info['mismatched_keys']


def test_tensors_of_older_files_are_the_same_network(tmp_path):
  made = load('clip_text')
  tensors = layout.tensors(pretrained_clip.layout(made.net, {}), made.params)
  older = tensors | {'text_model.embeddings.position_ids': np.arange(16)[None]}
  config = config_of('clip_text')
  folder.write(tmp_path / 'older', config, older, stem='model')
  folder.write(tmp_path / 'newer', config, {k.removeprefix('text_model.'): v for k, v in tensors.items()}, stem='model')
  for name in ('older', 'newer'):
    jax.tree.map(np.testing.assert_array_equal, networks.load(tmp_path / name).params, made.params)


def test_open_clip_has_the_same_numbers_in_other_tensors():
  it = load('clip')
  made = pretrained_clip.open_layout(it.net)
  tensors = layout.tensors(made, it.params)
  kernel = it.params['text']['blocks']['attention']['qkv']['kernel'][1]  # d 3 n h
  np.testing.assert_array_equal(
    tensors['transformer.resblocks.1.attn.in_proj_weight'], kernel.reshape(32, -1).T
  )  # queries of all heads, then keys, then values
  np.testing.assert_array_equal(tensors['text_projection'], it.params['text']['projection']['kernel'])
  np.testing.assert_array_equal(tensors['visual.proj'], it.params['vision']['projection']['kernel'])
  again = layout.pretrained(made, {**tensors, 'attn_mask': np.zeros((16, 16))}, source='open_clip')
  jax.tree.map(np.testing.assert_array_equal, again.params, it.params)


def checkpoint(it: layout.Pretrained, prefix: str, *, open_names: bool) -> dict[str, np.ndarray]:
  leaves = (pretrained_clip.open_text_leaves if open_names else pretrained_clip.text_leaves)(it.net, prefix=prefix)
  return state_dict.to_torch(leaves, it.params)


def test_text_encoders_of_single_files_are_found_by_their_names():
  plain = load('clip_text_plain')
  projected = load('clip_text_gelu')
  sd1 = checkpoint(plain, 'cond_stage_model.transformer.', open_names=False)
  sd2 = checkpoint(projected, 'cond_stage_model.model.', open_names=True)
  xl = checkpoint(plain, 'conditioner.embedders.0.transformer.', open_names=False)
  xl |= checkpoint(projected, 'conditioner.embedders.1.model.', open_names=True)
  xl |= {'conditioner.embedders.1.model.logit_scale': np.float32(4.6)}
  rest = {'model.diffusion_model.out.0.weight': np.zeros(3)}
  found = checkpoint_text.layouts(sd1 | rest)['text_encoder']
  assert found.net == plain.net.clone(heads=1)  # heads of 64, which the file does not say
  check_same(found, sd1 | rest, sd1)

  found = checkpoint_text.layouts(sd2)['text_encoder']
  assert (found.net.depth, found.net.projection, found.net.activation) == (2, 0, clip.exact_gelu)
  check_same(found, sd2, {name: array for name, array in sd2.items() if '.2.' not in name and 'projection' not in name})

  two = checkpoint_text.layouts(xl)
  assert list(two) == ['text_encoder', 'text_encoder_2'] and two['text_encoder_2'].net.projection == 24
  second = 'conditioner.embedders.1.model.'
  check_same(two['text_encoder_2'], xl, {k: v for k, v in xl.items() if k.startswith(second) and 'scale' not in k})


def check_same(found: layout.Layout, file: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
  """What is read from the file and written again is `wanted`."""
  tensors = layout.tensors(found, layout.pretrained(found, file, source='').params)
  assert tensors.keys() == wanted.keys()
  for name in wanted:
    np.testing.assert_array_equal(tensors[name], wanted[name])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'architectures': ['GPT2Model']}, 'GPT2Model'),
    ({'architectures': ['os.system']}, 'os.system'),
    ({'architectures': []}, 'names no class'),
    ({'hidden_act': 'relu'}, 'relu'),
    ({'layer_norm_eps': 1e-7}, 'layer_norm_eps'),
    ({'hidden_size': 40}, 'misshapen'),
  ],
)
def test_a_folder_that_is_something_else_is_refused(tmp_path, change, message):
  made = load('clip_text')
  networks.save(made, tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(json.loads((tmp_path / 'config.json').read_text()) | change))
  with pytest.raises(ValueError, match=message):
    networks.load(tmp_path)


def test_t5_of_version_1_0_and_float16_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'version 1\.0'):
    networks.READERS['T5EncoderModel']({'architectures': ['T5EncoderModel'], 'd_model': 32})
  with pytest.raises(ValueError, match='float16'):
    t5.T5Encoder(32, 48, 1, 2, dtype=jnp.float16).init(jax.random.key(0), IDS)


def test_more_tokens_than_positions_are_refused():
  with pytest.raises(ValueError, match='77'):
    clip.CLIPText(32, 1, 2).init(jax.random.key(0), jnp.zeros((1, 78), jnp.int32))


@pytest.mark.parametrize(
  'net',
  [
    clip.CLIPText(32, 2, 4, vocabulary=99),
    t5.T5Encoder(32, 48, 2, 4, vocabulary=99),
    bert.Bert(32, 48, 2, 4, vocabulary=99),
  ],
)
def test_rules_shard_every_product(net):
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  shapes = jax.eval_shape(net.init, jax.random.key(0), IDS)['params']
  flat = traverse_util.flatten_dict(sharding.shard_tree(shapes, mesh, known=RULES), sep='/')
  for path, place in flat.items():
    if path.startswith('blocks/') and path.endswith('kernel'):
      assert {'fsdp', 'tensor'} == set(sharding.axes_of(place)), path
  assert 'fsdp' in sharding.axes_of(flat['token_embed/embedding'])


def test_sharded_equals_single(given):
  it = load('t5')
  ids = given['long']
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  params = jax.device_put(it.params, sharding.shard_tree(it.params, mesh, known=RULES))
  ids = jax.device_put(jnp.concatenate([ids, ids]), sharding.batch_sharding(mesh))
  got = jax.jit(sharding.under(mesh, lambda p, i: it.net.apply({'params': p}, i)))(params, ids)
  close(np.asarray(got)[:2], np.asarray(apply(it, ids[:2])), 3e-5)


def test_a_bfloat16_t5_stays_near_and_its_residual_is_float32(given):
  it = load('t5')
  ids = given['long']
  exact = np.asarray(apply(it, ids))
  net = it.net.clone(dtype=jnp.bfloat16)
  rough = np.asarray(apply(it._replace(net=net), ids), np.float32)
  drift = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
  assert 1e-4 < drift < 0.098  # transformers' own, with the same weights; ours is 0.03 to 0.07, by how a CPU sums
  tpu = AbstractDevice(device_kind='tpu', num_cores=1, platform='tpu')  # where the stack is a scan
  mesh = AbstractMesh((1,) * 4, sharding.AXES, axis_types=(AxisType.Auto,) * 4, abstract_device=tpu)
  with jax.sharding.use_abstract_mesh(mesh):
    program = jax.make_jaxpr(lambda params: net.apply({'params': params}, ids))(it.params)
  (scan,) = [equation for equation in program.eqns if equation.primitive.name == 'scan']
  assert scan.outvars[0].aval.dtype == jnp.float32


def test_preprocessing_crops_the_middle_and_standardises():
  image = jnp.full((1, 60, 100, 3), 0.5).at[:, :, :20].set(-1).at[:, :, 80:].set(-1)  # all but the middle square
  got = clip.preprocess(image, size=60)
  wanted = (0.75 - np.array([0.48145466, 0.4578275, 0.40821073])) / np.array([0.26862954, 0.26130258, 0.27577711])
  np.testing.assert_allclose(got, np.broadcast_to(wanted, (1, 60, 60, 3)), rtol=1e-5)
  assert clip.preprocess(image, size=30).shape == (1, 30, 30, 3)


def test_preprocessing_resizes_as_pillow():
  PIL = pytest.importorskip('PIL.Image')
  pixels = np.random.default_rng(0).integers(64, 192, (40, 52, 3), dtype=np.uint8)  # nothing clips
  wanted = np.asarray(PIL.fromarray(pixels).resize((36, 28), PIL.Resampling.BICUBIC), np.float32)[:, 4:32] / 255
  got = clip.preprocess(jnp.asarray(pixels[None], jnp.float32) / 127.5 - 1, size=28)
  mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
  np.testing.assert_allclose(np.asarray(got[0]) * std + mean, wanted, atol=1.5 / 255)


def test_minilm_is_stored_with_its_configuration(tmp_path):
  small = bert.Bert(32, 48, 1, 4, vocabulary=50)
  params = jax.jit(small.init)(jax.random.key(0), IDS)['params']
  made = pretrained_bert.layout(small, pretrained_bert.configuration(small))
  tensors = layout.tensors(made, params)
  path = tmp_path / 'minilm.safetensors'
  safetensors_file.write(path, tensors, metadata={'config': json.dumps(made.config)})
  again = networks.load(path)
  assert again.net == small
  jax.tree.map(np.testing.assert_array_equal, again.params, params)
  safetensors_file.write(path, tensors, metadata={})
  with pytest.raises(ValueError, match='does not say'):
    networks.load(path)
