"""Conditions: drops are exclusive events of an image, nulls before and after the encoder, and encoding happens once."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.generation.negative import away_from
from jaxgen.objectives.conditioning import Conditioner, Field, always, labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation, times
from jaxgen.processes.process import Prediction
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from jaxgen.samplers.guidance import Term, classifier_free, compositional, guided
from jaxgen.samplers.sampler import Sampler
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step

TABLE = np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2)
BOTH = ('text', 'image')


def encode(params, frozen, fields, keys):
  """Tokens by a frozen table and a sine, which stands for the encoder in a jaxpr; images as they are."""
  cond = {}
  if 'text' in fields:
    cond |= {'text': jnp.sin(frozen['table'][fields['text']]), 'pooled': jnp.mean(fields['text'], axis=1) * 1.0}
  return cond | {name: value for name, value in fields.items() if name != 'text'}


TOLD = Conditioner(
  fields={'text': Field(np.zeros(3, np.int32)), 'image': Field(0.0), 'size': Field()},
  drops={('text',): 0.2, ('image',): 0.2, BOTH: 0.2},
  encode=encode,
)
FROZEN = {'table': jnp.asarray(TABLE)}


def _batch(n):
  rng = np.random.default_rng(0)
  return {
    'image': jnp.asarray(rng.uniform(1, 2, (n, 2, 2, 1)), jnp.float32),
    'text': jnp.asarray(rng.integers(1, 6, (n, 3)), jnp.int32),
    'size': jnp.ones(n),
  }


def _dropped(conditioner, n, **kwargs):
  keys = {'drop_key': jax.random.key(1), 'encode_key': jax.random.key(2)}
  return jax.jit(partial(conditioner.dropped, {}, FROZEN, **keys, **kwargs))(_batch(n))


def test_drops_are_exclusive_events_and_a_field_without_a_null_is_always_told():
  n = 4000
  cond, everything = _dropped(TOLD, n)
  no_text = np.asarray(cond['pooled']) == 0
  no_image = np.asarray(cond['image']).reshape(n, -1).max(1) == 0
  rates = [np.mean(no_text & ~no_image), np.mean(no_image & ~no_text), np.mean(no_text & no_image)]
  np.testing.assert_allclose(rates, 0.2, atol=4 * (0.16 / n) ** 0.5)
  np.testing.assert_array_equal(everything, no_text & no_image)
  np.testing.assert_allclose(cond['text'][no_text], np.sin(np.tile(TABLE[0], (no_text.sum(), 3, 1))), rtol=1e-6)
  np.testing.assert_array_equal(cond['size'], 1)


def test_an_image_s_event_does_not_depend_on_its_batch():
  all_64, _ = _dropped(TOLD, 64)
  for n in (1, 7):
    few, _ = _dropped(TOLD, n)
    np.testing.assert_array_equal(few['pooled'] == 0, all_64['pooled'][:n] == 0)


def test_an_encoded_null_stands_for_the_encoder_s_output():
  zeros = {'text': np.zeros((3, 2), np.float32), 'pooled': np.float32(-1)}
  conditioner = TOLD._replace(
    fields={'text': Field(zeros, encoded=True), 'image': Field(), 'size': Field()}, drops={('text',): 0.5}
  )
  cond, lost = _dropped(conditioner, 64)
  np.testing.assert_array_equal(cond['text'][lost], 0)
  np.testing.assert_array_equal(cond['pooled'][lost], -1)
  assert np.all(np.asarray(cond['pooled'])[~np.asarray(lost)] > 0)
  entries = conditioner.nulls({}, FROZEN, ('text',))
  np.testing.assert_array_equal(entries['pooled'], -1)
  whole, _ = conditioner.condition({}, FROZEN, _batch(2), jax.random.split(jax.random.key(0), 2))
  np.testing.assert_array_equal(conditioner.without({}, FROZEN, whole)['text'], np.zeros((2, 3, 2)))


@pytest.mark.parametrize(
  ('drops', 'message'),
  [
    ({('size',): 0.1}, "drops name 'size', which has no null"),
    ({('text',): 1.5}, 'is a probability'),
    ({('text',): 0.6, ('image',): 0.6}, 'the drop rates add to 1.2'),
  ],
)
def test_drops_that_cannot_be_are_refused(drops, message):
  with pytest.raises(ValueError, match=message):
    TOLD._replace(drops=drops).check()


def test_what_has_no_null_cannot_be_left_out():
  _, without = always('label').condition({}, {}, {'label': jnp.zeros(2, int)}, jax.random.split(jax.random.key(0), 2))
  assert without(()) == {}
  with pytest.raises(ValueError, match="'size' has no null"):
    TOLD.nulls({}, FROZEN, ('size',))


class Reads(nn.Module):
  """x0 as a sum of the conditions."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    of = self.param('of', nn.initializers.ones, ())
    value = cond['text'].mean((1, 2)) + cond['pooled'] / 10 + cond['image'].mean((1, 2, 3))
    return of * jnp.broadcast_to(value.reshape(-1, 1, 1, 1), x.shape)


def _objective(**changes):
  return diffusion(
    Reads(),
    rectified_flow(),
    **{
      'shape': (2, 2, 1),
      'parameterisation': parameterisation.x0,
      'times': times.uniform(),
      'sampler': Sampler(euler, grids.uniform(3)),
      'conditioner': TOLD,
      'limit': None,
      **changes,
    },
  )


def _sines(jaxpr, inside=False):
  """How often the encoder's sine stands outside and inside of loops."""
  counts = np.zeros(2, int)
  for equation in jaxpr.eqns:
    counts[int(inside)] += equation.primitive.name == 'sin'
    for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, 'eqns') or hasattr(leaf, 'jaxpr')):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        counts += _sines(inner, inside or equation.primitive.name in ('scan', 'while'))
  return counts


def test_a_batch_is_encoded_once_in_a_step_and_never_inside_the_sampler_s_loop():
  objective, batch, keys = _objective(guide=(classifier_free(3.0),)), _batch(4), jax.random.split(jax.random.key(0), 4)
  optimizers = {'net': optax.sgd(0.1)}
  state = init_state(objective, optimizers, {}, batch, jax.random.key(0), frozen=FROZEN)
  step = make_train_step(objective, optimizers, {})
  np.testing.assert_array_equal(_sines(jax.make_jaxpr(step)(state, FROZEN, batch, jax.random.key(1)).jaxpr), [1, 0])
  sample = jax.make_jaxpr(objective.sample)(state.params, FROZEN, batch, keys).jaxpr
  np.testing.assert_array_equal(_sines(sample), [2, 0])  # the condition, and one row of nulls


def _said(fields):
  """What Reads answers."""
  text = np.sin(TABLE[np.asarray(fields['text'])]).mean((1, 2))
  return text + np.asarray(fields['text']).mean(1) / 10 + np.asarray(fields['image']).mean((1, 2, 3))


def test_guidance_is_a_sum_of_terms():
  """D(c_0) + s_I (D(image) - D(c_0)) + s_T (D(image, text) - D(image)), as InstructPix2Pix has it."""
  batch, keys = _batch(4), jax.random.split(jax.random.key(0), 4)
  nothing = batch | {'text': jnp.zeros_like(batch['text']), 'image': jnp.zeros_like(batch['image'])}
  image = nothing | {'image': batch['image']}
  c_0, c_1, c_2 = (_said(fields) for fields in (nothing, image, batch))
  sample = _objective(guide=(compositional({BOTH: 1.5, ('text',): 7.5}),)).sample
  got = jax.jit(sample)({'net': {'of': jnp.ones(())}}, FROZEN, batch, keys)
  np.testing.assert_allclose(got[:, 0, 0, 0], c_0 + 1.5 * (c_1 - c_0) + 7.5 * (c_2 - c_1), rtol=2e-4)


def test_a_negative_prompt_takes_the_place_of_the_null():
  batch, keys = _batch(4), jax.random.split(jax.random.key(0), 4)
  objective = _objective(guide=(classifier_free(3.0, ('text',)),))
  d = away_from(objective.denoising, TOLD, {'text': np.array([5, 5, 1])})
  cond, without = d.condition({}, FROZEN, batch, keys)
  bad = _said(batch | {'text': jnp.tile(jnp.array([5, 5, 1]), (4, 1))})
  good = _said(batch)
  reads = lambda x, t, cond: Prediction(Reads().apply({'params': {'of': 1.0}}, x, t, cond, train=False), x)  # noqa: E731
  guide = d.guide[0](reads, rectified_flow(), without)
  got = guide(jnp.zeros((4, 2, 2, 1)), jnp.ones(4), cond).x0[:, 0, 0, 0]
  np.testing.assert_allclose(got, bad + 3 * (good - bad), rtol=1e-4)
  with pytest.raises(ValueError, match="'size' cannot be negative"):
    away_from(objective.denoising, TOLD, {'size': 1.0})


def test_terms_that_change_nothing_cost_nothing():
  denoise = lambda x, t, cond: Prediction(x, x)  # noqa: E731
  assert guided(denoise, [Term({'label': 3}, 1.0)]) is denoise
  assert classifier_free(3.0)(denoise, rectified_flow(), lambda names: {}) is denoise  # of data without labels
  assert classifier_free(1.0)(denoise, rectified_flow(), lambda names: {}) is denoise


def test_a_null_may_be_trained_and_a_phase_may_train_several_keys():
  """The null is the condition of dropped images, so it goes to their mean."""
  conditioner = Conditioner(
    {'image': Field(lambda params: params['null'], encoded=True)},
    {('image',): 0.5},
    encode=lambda params, frozen, fields, keys: {'image': fields['image']} if 'image' in fields else {},
    init=lambda key: {'null': jnp.zeros(())},
  )

  class Echo(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond, *, train):
      return cond['image'] + self.param('bias', nn.initializers.zeros, ())

  objective = diffusion(
    Echo(),
    rectified_flow(),
    shape=(2, 2, 1),
    parameterisation=parameterisation.x0,
    times=times.uniform(),
    sampler=Sampler(euler, grids.uniform(1)),
    conditioner=conditioner,
  )
  assert objective.phases[0].keys == ('net', 'null')
  optimizers = {'net': optax.sgd(0.0), 'null': optax.sgd(0.3)}
  batch = {'image': jnp.full((64, 2, 2, 1), 0.7)}
  state = init_state(objective, optimizers, {}, batch, jax.random.key(0))
  step = make_train_step(objective, optimizers, {}, accumulate=2)
  run = lambda state, i: step(state, {}, batch, jax.random.fold_in(jax.random.key(1), i))  # noqa: E731
  state, _ = jax.jit(lambda state: jax.lax.scan(run, state, jnp.arange(40)))(state)
  np.testing.assert_allclose(state.params['null'], 0.7, atol=0.02)
  assert state.params['net']['bias'] == 0


def test_a_weight_map_weighs_images_and_pixels():
  objective, batch = _objective(conditioner=TOLD._replace(drops={})), _batch(4)
  params, key = {'net': {'of': jnp.ones(())}}, jax.random.key(0)
  loss = jax.jit(lambda batch: objective.phases[0].loss(params, None, FROZEN, batch, key)[0])
  rows, left = jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros((4, 2, 2, 1)).at[:, :, 0].set(1.0)
  whole, none, first, half, large = (
    loss(batch | more)
    for more in (
      {},
      {'weight': jnp.zeros(4)},
      {'weight': rows},
      {'weight': left},
      {'weight': jnp.repeat(jnp.repeat(left, 4, 1), 4, 2)},
    )
  )
  others = loss(batch | {'weight': 1 - rows})
  assert none == 0
  np.testing.assert_allclose(first + others, whole, rtol=1e-5)
  np.testing.assert_allclose(half + loss(batch | {'weight': 1 - left}), whole, rtol=1e-5)
  assert 0 < half < whole
  np.testing.assert_allclose(large, half, rtol=1e-4)  # of images eight pixels wide, for latents of two
  named = _objective(weight_map='mask')
  with pytest.raises(ValueError, match="weight_map names 'mask', which the batch does not have"):
    named.phases[0].loss(params, None, FROZEN, batch, key)


def test_labels_are_the_common_case():
  conditioner = labels(10, drop_rate=0.1)
  assert conditioner.fields == {'label': Field(10)}
  assert conditioner.drops == {('label',): 0.1}
  assert labels(0) == Conditioner()
