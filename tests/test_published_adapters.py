"""Files of adapters in a published generator: what says nothing changes nothing, and what is wrong is refused."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen import from_weights
from jaxgen.adapters import controlnet, ip_adapter, published
from jaxgen.adapters.textual_inversion import Embedding
from jaxgen.cli import adapters
from jaxgen.cli.main import main
from jaxgen.models.clip import CLIPVision
from jaxgen.models.controlnet import Controlled, ControlNet
from jaxgen.models.image_prompt import ImageProjection
from jaxgen.objectives.controlled import IMAGE_PROMPT, IMAGE_PROMPT_SCALE, controlled, prompted
from jaxgen.pretrained import diffusers_unet, safetensors_file
from jaxgen.pretrained import pipeline as pipelines
from jaxgen.pretrained.layout import Pretrained
from tests import pipelines as peers

pytest.importorskip('tokenizers')
PROMPT = 'a red cat!'


@pytest.fixture(scope='module')
def generator(tmp_path_factory):
  path = tmp_path_factory.mktemp('sd15')
  peers.write('sd15', path / 'it')
  return pipelines.load(path / 'it')


def _answer(pipeline, prompt=PROMPT, extend=lambda conditioner: conditioner, **more):
  """x0 of one call with the prompt, and the condition of guidance's weaker half."""
  trained = from_weights.trained(pipeline, texts=[prompt], size=(16, 16), steps=2, extend=extend)
  d, fields = trained.stage.objective.denoising, {**trained.stage.tokenize([prompt]), **more}
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 8, 4)), jnp.float32)

  @jax.jit
  def run(params, frozen, fields):
    cond, without = d.condition(params, frozen, fields, jax.random.split(jax.random.key(0), 1))
    return d.denoiser(params, frozen)(x, jnp.full(1, 0.5), cond).x0, without(())

  return run(trained.params, trained.frozen, fields)


@pytest.fixture(scope='module')
def plain(generator):
  return _answer(generator)[0]


def test_a_new_token_with_the_rows_of_known_ones_reads_as_they_do(generator, plain):
  it, tokenizer = generator.components['text_encoder'], generator.tokenizers['tokenizer']
  table = np.asarray(it.params['token_embed']['embedding'])
  rows = table[tokenizer.pieces('red cat')]
  grown = published.with_embedding(generator, Embedding('<new>', {'text_encoder': rows}))
  np.testing.assert_allclose(_answer(grown, 'a <new>!')[0], plain, rtol=0, atol=1e-5)
  with pytest.raises(ValueError, match='rows of 3 features; this text encoder has 16'):
    published.with_embedding(generator, Embedding('<new>', {'text_encoder': rows[:, :3]}))
  with pytest.raises(ValueError, match='is for text_encoder_2; this generator has text_encoder'):
    published.with_embedding(generator, Embedding('<new>', {'text_encoder_2': rows}))


def test_a_lora_of_a_file_is_merged_into_all_its_networks(generator, plain, tmp_path):
  rng = np.random.default_rng(0)
  q = 'unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q'
  text = 'text_encoder.text_model.encoder.layers.0.self_attn.q_proj'
  tensors = {}
  for module, width in ((q, 8), (text, 16)):
    tensors[f'{module}.lora_A.weight'] = rng.standard_normal((2, width)).astype(np.float32)
    tensors[f'{module}.lora_B.weight'] = rng.standard_normal((width, 2)).astype(np.float32)
  safetensors_file.write(tmp_path / 'it.safetensors', tensors, metadata={})
  made = published.with_lora(generator, tmp_path / 'it.safetensors', weight=0.5)
  for name, path in (('unet', ('encoder_0_attention', 'block_0', 'self', 'query')),):
    old, new = generator.components[name].params, made.components[name].params
    for part in (*path, 'kernel'):
      old, new = old[part], new[part]
    delta = 0.5 * (tensors[f'{q}.lora_B.weight'] @ tensors[f'{q}.lora_A.weight']).T
    np.testing.assert_allclose(np.asarray(new).reshape(8, 8) - np.asarray(old).reshape(8, 8), delta, atol=1e-5)
  assert made.components['text_encoder'].params is not generator.components['text_encoder'].params
  tensors = {name.replace('attn1', 'attn9'): array for name, array in tensors.items()}
  safetensors_file.write(tmp_path / 'bad.safetensors', tensors, metadata={})
  with pytest.raises(ValueError, match='1 of 2 modules are not of this model'):
    published.with_lora(generator, tmp_path / 'bad.safetensors')


def test_a_control_branch_at_scale_0_is_the_base(generator, plain):
  unet = generator.denoiser
  branch = ControlNet(unet.net, hint=(4, 4), strides=1)
  x, t, cond = (
    jnp.zeros((1, 8, 8, 4)),
    jnp.zeros(1),
    {'text': jnp.zeros((1, 77, 16)), 'control': jnp.zeros((1, 16, 16, 3))},
  )
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(branch.init, jax.random.key(0), x, t, cond)['params']
  params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), shapes)
  led = published.with_controls(generator, [Pretrained(branch, params)])
  assert isinstance(led.denoiser.net, Controlled)
  picture = np.float32(rng.uniform(size=(1, 16, 16, 3)))
  for scale, same in ((0.0, True), (1.0, False)):
    more = {'control': picture, 'control_scale': np.full(1, scale, np.float32)}
    x0, null = _answer(led, extend=lambda c: controlled(c, guess=True), **more)
    assert (np.abs(x0 - plain).max() < 1e-4) == same
  assert not np.any(null['control_scale'])
  other = Pretrained(ControlNet(unet.net.clone(width=16), (4, 4), 1), params)
  with pytest.raises(ValueError, match='branch 1 is of another U-Net than this generator has: width 16 and 8'):
    published.with_controls(generator, [other])


def test_an_image_prompt_at_scale_0_is_the_base(generator, plain, tmp_path):
  net, rng = generator.denoiser.net, np.random.default_rng(2)
  tower = CLIPVision(size=8, patch=4, width=8, depth=1, heads=2, projection=5)
  shapes = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  drawn = lambda shapes: jax.tree.map(lambda leaf: np.float32(0.5 * rng.standard_normal(leaf.shape)), shapes)  # noqa: E731
  projection = ImageProjection(2, 16)
  leaves = ip_adapter.leaves(net, projection, tokens_width=16, features=5)
  tensors = drawn(
    {name: jax.ShapeDtypeStruct(leaf.tensor_shape, np.float32) for leaf in leaves.values() for name in leaf.names}
  )
  safetensors_file.write(tmp_path / 'it.safetensors', tensors, metadata={})
  images = np.float32(rng.uniform(-1, 1, (1, 12, 12, 3)))
  encoder = Pretrained(tower, drawn(shapes))
  led, tokens, nothing = published.with_image_prompt(generator, tmp_path / 'it.safetensors', encoder, images)
  assert tokens.shape == (1, 2, 16) and nothing.shape == (2, 16)
  for scale, same in ((0.0, True), (1.0, False)):
    more = {IMAGE_PROMPT: tokens, IMAGE_PROMPT_SCALE: np.full(1, scale, np.float32)}
    x0, null = _answer(led, extend=lambda c: prompted(c, nothing), **more)
    assert (np.abs(x0 - plain).max() < 1e-4) == same
  np.testing.assert_array_equal(null[IMAGE_PROMPT], nothing)
  wrong = Pretrained(tower.clone(projection=7), encoder.params)
  with pytest.raises(ValueError, match='projects 5 features of an image, and this image encoder makes 7'):
    published.with_image_prompt(generator, tmp_path / 'it.safetensors', wrong, images)


def _args(**given):
  none = dict.fromkeys(('weights', 'image_prompt', 'ip_adapter', 'image_encoder'))
  lists = {name: [] for name in ('lora', 'embedding', 'control', 'controlnet', 'control_scale')}
  return argparse.Namespace(**none | lists | {'guess': False} | given)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'embedding': ['cat.pt']}, '--embedding is for --weights'),
    ({'weights': 'sd', 'control': ['canny=a.png']}, '--control is given 1 times and --controlnet 0 times'),
    ({'weights': 'sd', 'ip_adapter': 'a.bin'}, 'go together'),
    ({'control': ['a.png'], 'control_scale': [1.0, 2.0]}, '--control-scale is given 2 times for 1 of --control'),
    ({'lora': ['a.pt', './a.pt:0.5']}, 'is given 2 times; give it once'),
  ],
)
def test_options_that_do_not_go_together_are_refused(given, message):
  with pytest.raises(ValueError, match=message):
    adapters.check(_args(**given))


def test_a_kind_of_control_that_there_is_not_is_refused():
  with pytest.raises(ValueError, match="there is no kind 'depht'; wanted one of canny, picture, hed, depth, pose"):
    adapters.pictures('depht=a.png', (8, 8, 3), 1)


@pytest.mark.slow
def test_all_of_them_at_once_from_the_command_line(generator, tmp_path, monkeypatch):
  unet, rng = generator.denoiser, np.random.default_rng(0)
  branch = ControlNet(unet.net, hint=(4, 4), strides=1)
  x, t, cond = (
    jnp.zeros((1, 8, 8, 4)),
    jnp.zeros(1),
    {'text': jnp.zeros((1, 77, 16)), 'control': jnp.zeros((1, 16, 16, 3))},
  )
  shapes = jax.eval_shape(branch.init, jax.random.key(0), x, t, cond)['params']
  params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), shapes)
  of_unet = diffusers_unet.write(unet.net, unet.params, unet.meta)
  controlnet.save(tmp_path / 'control', branch, params, of_unet.config, of_unet.leaves)
  peers.write('sd15', tmp_path / 'sd')
  safetensors_file.write(tmp_path / 'new.safetensors', {'<new>': np.ones((2, 16), np.float32)}, metadata={})
  q = 'unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q'
  lora = {f'{q}.lora_A.weight': np.ones((1, 8), np.float32), f'{q}.lora_B.weight': np.ones((8, 1), np.float32)}
  safetensors_file.write(tmp_path / 'lora.safetensors', lora, metadata={})
  Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(tmp_path / 'photo.png')
  monkeypatch.chdir(tmp_path)
  command = ['sample', '--weights', 'sd', '--size', '16x16', '--steps', '1', '--num', '2', '--prompt', 'a <new> cat']
  more = ['--lora', 'lora.safetensors:0.5', '--embedding', 'new.safetensors', '--guess']
  more += ['--control', 'canny=photo.png', '--controlnet', 'control', '--control-scale', '0.8']
  assert main([*command, *more, '--out', 'led']) == 0
  assert len(list((tmp_path / 'led').glob('*.png'))) == 2
