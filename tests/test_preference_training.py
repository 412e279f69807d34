"""DPO, GRPO and DiffusionNFT: their losses against transcriptions in NumPy, and that each learns what is rewarded."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxgen import ema
from jaxgen.data.datasets.preferences import preferences
from jaxgen.objectives.base import sampled
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.preference import dpo, grpo, nft, rewards, rollouts
from jaxgen.processes import parameterisation, times
from jaxgen.processes.process import image_noise
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from jaxgen.samplers.sampler import Sampler
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step

FLOW = rectified_flow()
GRID = grids.uniform(4)


class Level(nn.Module):
  """x0 = a share of x_t and a level of each class."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    level = self.param('level', nn.initializers.constant(0.1), (2,))
    return 0.5 * x + level[cond['label']][:, None, None, None]


def _base():
  return diffusion(
    Level(),
    FLOW,
    shape=(1, 2, 1),
    parameterisation=partial(parameterisation.x0, margin=0.05),
    times=times.uniform(),
    sampler=Sampler(euler, GRID),
    conditioner=labels(2),
  )


def _bright(frozen, images, batch):
  """Class 1 is to be bright and class 0 dark."""
  return jnp.mean(images, axis=(1, 2, 3)) * (2.0 * batch['label'] - 1)


BASE = _base()
BATCH = {'image': jnp.zeros((8, 1, 2, 1)), 'label': jnp.arange(8) % 2}
ROLLOUTS = rollouts.Rollouts(BASE.sample, _bright, prompts=4, group=4)
REFERENCE = {'net': {'level': jnp.asarray([0.1, 0.1])}}


def _objectives():
  at = times.uniform()
  return {
    'dpo': (dpo.dpo(BASE, times=at, beta=50.0, rollouts=ROLLOUTS, pool=16), {}),
    'nft': (
      nft.nft(BASE, times=at, rollouts=ROLLOUTS, pool=32, old={'net': 'old'}, kl=1e-4),
      {'old': ema.Average('net', ema.constant(0.8))},
    ),
    'grpo': (grpo.grpo(BASE, times=GRID, reward=_bright, prompts=4, group=4, kl=1e-3), {}),
  }


@pytest.mark.parametrize('name', ['dpo', 'nft', 'grpo'])
def test_each_method_learns_what_is_rewarded_and_two_runs_are_one(name):
  objective, averages = _objectives()[name]
  optimizers = {'net': optax.adam(0.02)}
  step = make_train_step(objective, optimizers, averages)

  @jax.jit
  def run(key):
    state = init_state(objective, optimizers, averages, BATCH, key)
    body = lambda state, i: step(state, REFERENCE, BATCH, jax.random.fold_in(key, i))  # noqa: E731
    state, metrics = jax.lax.scan(body, state, jnp.arange(40))
    return state.params['net']['level'], metrics['reward'].total

  level, reward = run(jax.random.key(0))
  assert level[1] > 0.15 and level[0] < 0.05, level
  assert reward[-5:].mean() > reward[:5].mean() or name == 'dpo'  # of the reference's own samples
  np.testing.assert_array_equal(level, run(jax.random.key(0))[0])


def test_dpo_is_wallaces_loss():
  """Their code: -log sigmoid(-beta/2 ((m_w - m_l) - (r_w - r_l))), means of squared errors of eps."""
  rng = np.random.default_rng(0)
  better, worse = (rng.normal(size=(3, 1, 2, 1)).astype(np.float32) for _ in range(2))
  label, t = np.asarray([0, 1, 1]), jnp.asarray([0.2, 0.5, 0.9])
  params, reference = {'net': {'level': jnp.asarray([0.3, -0.2])}}, REFERENCE
  rows = {'better': jnp.asarray(better), 'worse': jnp.asarray(worse), 'fields': {'label': jnp.asarray(label)}}
  key = jax.random.key(3)
  loss = jax.jit(
    lambda params, rows: dpo.pair_loss(
      BASE.denoising, params, reference, {}, rows, key, lambda key, b: t, 7.0, parameterisation.eps
    )
  )
  got, found = loss(params, rows)
  noise = np.asarray(image_noise(jax.random.split(jax.random.split(key, 3)[1], 3), (1, 2, 1)))
  s = np.asarray(t).reshape(3, 1, 1, 1)

  def error(x0, level):
    x_t = (1 - s) * x0 + s * noise
    eps = (x_t - (1 - s) * (0.5 * x_t + np.asarray(level)[label].reshape(3, 1, 1, 1))) / np.maximum(s, 0.05)
    return ((eps - noise) ** 2).mean((1, 2, 3))

  (m_w, m_l), (r_w, r_l) = ([error(x0, p['net']['level']) for x0 in (better, worse)] for p in (params, reference))
  inside = -0.5 * 7.0 * ((m_w - m_l) - (r_w - r_l))
  np.testing.assert_allclose(got, np.mean(np.log1p(np.exp(-inside))), rtol=1e-4)
  np.testing.assert_allclose(found['accuracy'], np.mean(inside > 0), rtol=1e-6)


def test_nft_is_zhengs_loss():
  """Their code, for v: positive = b v + (1 - b) v_old, negative = (1 + b) v_old - b v; x0 = x_t - t v; each squared
  error over its own mean absolute error; r and 1 - r over b."""
  rng = np.random.default_rng(1)
  mine, old, drawn = (rng.normal(size=(3, 1, 2, 1)).astype(np.float32) for _ in range(3))
  good, beta = np.asarray([0.0, 0.3, 1.0], np.float32), 0.7
  got = nft.negative_aware(*map(jnp.asarray, (mine, old, drawn, good)), beta=beta)
  t, x_t = 0.6, rng.normal(size=mine.shape)
  v, v_old = (x_t - mine) / t, (x_t - old) / t
  want = 0
  for share, v_of in ((good, beta * v + (1 - beta) * v_old), (1 - good, (1 + beta) * v_old - beta * v)):
    x0 = x_t - t * v_of
    weight = np.abs(x0 - drawn).mean((1, 2, 3), keepdims=True)
    want = want + share / beta * ((x0 - drawn) ** 2 / weight).mean((1, 2, 3))
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_advantages_and_goodness_are_the_papers():
  r = np.asarray([[1.0, 2.0, 3.0], [5.0, 5.0, 8.0]])
  centred = r - r.mean(1, keepdims=True)
  np.testing.assert_allclose(rollouts.advantages(jnp.asarray(r)), centred / (r.std(1, keepdims=True) + 1e-4), rtol=1e-5)
  all_ = centred / (r.std() + 1e-4)
  np.testing.assert_allclose(nft.goodness(jnp.asarray(r), 0.5), np.clip(all_ / 0.5, -1, 1) / 2 + 0.5, rtol=1e-5)


def test_grpo_is_lius_step_and_ratio():
  """Flow-GRPO, Eq. 9, in their direction of time: x + [v + s^2/(2 t) (x + (1 - t) v)] dt + s sqrt(-dt) z, where s^2 is
  our v over the step; the ratio is exp of a difference of means of squares."""
  x, t, s, v_net = 0.7, 0.75, 0.5, -0.4
  steps = grpo.steps_of(FLOW, np.asarray([t, s, 0.0], np.float32), 0.7)
  assert steps.v[1] == 0  # the last step
  sde = float(steps.v[0]) / (t - s)
  x0, eps = x - t * v_net, x + (1 - t) * v_net
  got = x + steps.of_x0[0] * x0 + steps.of_eps[0] * eps
  want = x + (v_net + sde / (2 * t) * (x + (1 - t) * v_net)) * (s - t)
  np.testing.assert_allclose(got, want, rtol=1e-5)

  rng = np.random.default_rng(2)
  m, m_old, z = (rng.normal(size=(4, 1, 2, 1)).astype(np.float32) * 0.1 for _ in range(3))
  advantage, v, clip = np.asarray([1.0, -1.0, 2.0, -0.5]), 0.3, 0.01
  x_s = m_old + np.sqrt(v) * z
  log_p = lambda mean: (-((x_s - mean) ** 2) / (2 * v)).mean((1, 2, 3))  # noqa: E731
  ratio = np.exp(log_p(m) - log_p(m_old))
  want = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - clip, 1 + clip)).mean()
  got, found = grpo.clipped(*map(jnp.asarray, (m, m_old, z)), jnp.float32(v), jnp.asarray(advantage), clip)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert 0 < found['clipped'] <= 1


def test_a_pool_is_a_ring():
  pool = rollouts.empty_pool({'a': jnp.zeros((1, 2))}, 5)
  for i in range(4):
    pool = rollouts.put(pool, {'a': jnp.full((2, 2), i + 1.0)})
  np.testing.assert_array_equal(pool['rows']['a'][:, 0], [3, 4, 4, 2, 3])
  assert pool['drawn'] == 8
  few = rollouts.put(rollouts.empty_pool({'a': jnp.zeros((1, 2))}, 5), {'a': jnp.ones((2, 2))})
  assert (rollouts.take(few, 50, jax.random.key(0))['a'] == 1).all()  # never a row that is not there yet


class Classifier(nn.Module):
  @nn.compact
  def __call__(self, x, t, cond, *, train):
    return jnp.log(jnp.asarray([[0.2, 0.8, 0.1, 0.3, 0.6]])) * jnp.ones((len(x), 1))


def test_the_reward_is_the_mean_probability_of_what_is_asked_for():
  reward = rewards.attributes(Classifier(), (2, 3))
  named = jnp.asarray([[1, 2], [0, -1], [-1, -1]])
  got = reward({'judge': {}}, jnp.zeros((3, 1, 1, 3)), {'named': named})
  np.testing.assert_allclose(got, [(0.8 + 0.6) / 2, 0.2, 0.0], rtol=1e-5)


def test_pairs_that_people_chose_are_read(tmp_path):
  for name, value in (('a', 255), ('b', 0)):
    Image.new('RGB', (6, 6), (value, value, value)).save(tmp_path / f'{name}.png')
  line = {'prompt': 'a face', 'chosen': 'a.png', 'rejected': str(tmp_path / 'b.png'), 'question': 'real'}
  file = tmp_path / 'preferences.jsonl'
  file.write_text(json.dumps(line) + '\n')
  record = preferences(file, size=4, question='real').read(0)
  assert record['image'].min() == 1 and record['rejected'].max() == -1 and record['caption'] == 'a face'
  with pytest.raises(ValueError, match="no pairs for the question 'text'"):
    preferences(file, size=4, question='text')
  file.write_text('{"chosen": "a.png"}\n')
  with pytest.raises(ValueError, match='is no pair; wanted'):
    preferences(file, size=4)
  objective = dpo.dpo(BASE, times=times.uniform())
  with pytest.raises(ValueError, match="no 'rejected', the worse image"):
    objective.init(jax.random.key(0), {}, BATCH)


def test_what_cannot_be_compared_is_an_error():
  with pytest.raises(ValueError, match='wanted two or more'):
    rollouts.Rollouts(sampled(BASE.denoising), _bright, 2, 1).check()
  with pytest.raises(ValueError, match='a pool of 8 images for 16'):
    nft.nft(BASE, times=times.uniform(), rollouts=ROLLOUTS, pool=8, old={'net': 'old'})
