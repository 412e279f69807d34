"""Words to images: a text encoder that learns with the network, prompts from the command line, negative prompts."""

import argparse
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import sample
from jaxgen.cli import prompts
from jaxgen.data.tokenizers.tokenizer import encode_all
from jaxgen.data.tokenizers.words import words
from jaxgen.generation.negative import away_from
from jaxgen.models.mmdit import MMDiT
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.objectives.base import sampled
from jaxgen.objectives.conditioning import labels, trained_text
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.optimizers import matrices
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler
from tests import toys

TOKENIZER = words(['red', 'green', 'circle', 'square'], length=3)


def _objective(scale=3.0, conditioner=None):
  encoder = TextEncoder(vocabulary=TOKENIZER.size, width=8, depth=1, heads=2)
  return diffusion(
    MMDiT(patch=2, depth=2, width=16, heads=2),
    rectified_flow(),
    shape=(4, 4, 3),
    parameterisation=parameterisation.velocity,
    times=times.uniform(),
    sampler=Sampler(euler, grids.uniform(2)),
    guide=(classifier_free(scale),),
    conditioner=conditioner or trained_text(encoder, length=TOKENIZER.length, drop_rate=0.1),
    limit=None,
  )


@pytest.fixture(scope='module')
def params():
  batch = {'image': jnp.zeros((2, 4, 4, 3)), 'text': jnp.ones((2, 3), jnp.int32)}
  made = jax.jit(lambda key: _objective().init(key, {}, batch))(jax.random.key(0))['params']
  noise = np.random.default_rng(0).standard_normal
  return jax.tree.map(lambda leaf: leaf + 0.2 * noise(leaf.shape, np.float32), made)


def _ids(*texts):
  return {'text': jnp.asarray(encode_all(TOKENIZER, texts))}


def _sample(sample_fn, params, texts):
  return np.asarray(jax.jit(sample_fn)(params, {}, _ids(*texts), jax.random.split(jax.random.key(1), len(texts))))


def test_network_and_text_encoder_learn_in_one_pass(params):
  objective = _objective()
  (phase,) = objective.phases
  assert phase.keys == ('net', 'text')
  batch = {'image': jnp.ones((4, 4, 4, 3)) * 0.3} | _ids('red circle', 'green square', 'red', '')

  def loss(params):
    return phase.loss(params, SimpleNamespace(extra={}), {}, batch, jax.random.key(3))[0]

  gradient = jax.jit(jax.grad(loss))(params)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient['text']))


def test_words_change_the_image_and_an_empty_negative_prompt_does_not(params):
  objective = _objective()
  plain = _sample(objective.sample, params, ['red circle', 'green circle'])
  empty = away_from(objective.denoising, objective.conditioner, {'text': jnp.zeros(3, jnp.int32)})
  np.testing.assert_allclose(_sample(sampled(empty), params, ['red circle', 'green circle']), plain, atol=1e-5)
  assert np.abs(_sample(objective.sample, params, ['green square', 'green circle']) - plain)[0].max() > 1e-3


def test_a_negative_prompt_is_guided_away_from(params):
  """At scale w the guided prediction is D(c_0) + w (D(c) - D(c_0)): linear in w, and D(c) at 1."""
  objective = _objective()
  keys = jax.random.split(jax.random.key(0), 1)
  led = away_from(objective.denoising, objective.conditioner, {'text': _ids('square')['text'][0]})
  cond, without = led.condition(params, {}, _ids('red circle'), keys)
  empty, _ = objective.denoising.condition(params, {}, _ids('square'), keys)
  x, t = jnp.ones((1, 4, 4, 3)), jnp.array([0.5])
  denoise = objective.denoising.denoiser(params, {})
  process = objective.denoising.process(params)
  guided = classifier_free(4.0)(denoise, process, without)(x, t, cond).x0
  towards, away = denoise(x, t, cond).x0, denoise(x, t, empty).x0
  np.testing.assert_allclose(guided, away + 4.0 * (towards - away), atol=1e-4)


def test_muon_sees_the_matrices_of_joint_blocks(params):
  view = matrices(params['net'])
  assert view['blocks']['attention']['image_out']['kernel'].reduction_axis == (1, 2)
  assert view['blocks']['attention']['text_qkv']['kernel'].output_axis == (2, 3, 4)
  assert view['last_block']['attention']['image_out']['kernel'].reduction_axis == (0, 1)
  assert view['blocks']['image']['modulation']['kernel'] is None and view['patch_embed']['kernel'] is None


def _arguments(*argv):
  parser = argparse.ArgumentParser()
  prompts.add_options(parser)
  return parser.parse_args(argv)


def test_prompts_come_from_the_command_line_and_from_a_file(tmp_path):
  file = tmp_path / 'prompts.txt'
  file.write_bytes(b'\xef\xbb\xbfa red circle\r\n\r\n  a square \r\n')
  assert prompts.read(_arguments('--prompt', 'one', '--prompts', str(file))) == ['one', 'a red circle', 'a square']
  file.write_text('ein Häuschen\r\n', encoding='utf-16')
  assert prompts.lines_of(file) == ['ein Häuschen']
  file.write_bytes('ein Häuschen'.encode('latin-1'))
  with pytest.raises(ValueError, match=r'prompts\.txt: it is not UTF-8 text'):
    prompts.lines_of(file)
  assert prompts.overrides(_arguments('--guidance', '2.5')) == ['--config.sampling.scale=2.5']


@pytest.mark.parametrize(
  ('argv', 'message'),
  [(['--prompt', '  '], '--prompt is empty'), (['--negative', ''], '--negative is empty')],
)
def test_empty_words_are_refused(argv, message):
  with pytest.raises(ValueError, match=message):
    prompts.read(_arguments(*argv))


def test_an_empty_file_of_prompts_is_refused(tmp_path):
  (tmp_path / 'none.txt').write_text('\n \n')
  with pytest.raises(ValueError, match='holds no prompt'):
    prompts.read(_arguments('--prompts', str(tmp_path / 'none.txt')))


def _stage(objective, tokenize=None):
  return toys.experiment(objective=objective, tokenize=tokenize)


def test_a_model_of_labels_takes_no_prompt():
  with pytest.raises(ValueError, match="reads no text, so it takes no prompt; its conditions are 'label'"):
    sample.prompt_fields(_stage(_objective(conditioner=labels(3))), ['a cat'])


@pytest.mark.parametrize('text', ['a\0b', 'x' * 1_000_001])
def test_text_that_is_none_is_refused(text):
  stage = _stage(_objective(), lambda texts: {'text': encode_all(TOKENIZER, texts)})
  with pytest.raises(ValueError, match=r'NUL byte|at most 100,000'):
    sample.prompt_fields(stage, [text])


def test_a_negative_prompt_needs_guidance():
  stage = _stage(_objective(), lambda texts: {'text': encode_all(TOKENIZER, texts)})
  with pytest.raises(ValueError, match='no effect at guidance 1; give --guidance a value above 1'):
    prompts.negated(_arguments('--negative', 'red'), stage, {'sampling': {'scale': 1.0}})
