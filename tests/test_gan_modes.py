"""25 Gaussians: metrics of coverage; every game trains, and minimax does not cover the grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gaussians_gan
from jaxgen.data.datasets.gaussians import STD, centres, gaussians25
from jaxgen.metrics.modes import coverage, nearest_mode, stacked_mode
from jaxgen.train_state import init_state, sampling_params
from jaxgen.train_step import make_train_step

NUM = 2500  # images
STABLE = {'r1': 0.1, 'r2': 0.1}
WASSERSTEIN = {'loss': 'wasserstein', 'generator_every': 5}
# The generator learns five times as fast, about as in Metz et al. 2017: without help it runs from mode to mode.
SLOW = {'steps': 8000, 'optimizer.discriminator': 2e-4, 'optimizer.b1': 0.5, 'optimizer.b2': 0.999}
MINIBATCH = {'loss': 'non_saturating', 'discriminator.kernels': 4, 'batch_size': 128, 'steps': 12_000}
# The tests' own flags save time of compiling, these programs' time is running.
OPTIMISED = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}
# What is changed of the config, and how many of the 25 modes are to be covered: from, to.
LOST, ANY, NOT_ALL, ALL = (0, 3), (1, 25), (1, 23), (24, 25)
GAMES = {
  'minimax': ({}, NOT_ALL),
  'non-saturating': ({'loss': 'non_saturating'}, ANY),
  'hinge': ({'loss': 'hinge'}, ANY),
  'least squares': ({'loss': 'least_squares'}, ANY),
  'Wasserstein, clipped to 0.1': (WASSERSTEIN | {'clip': 0.1}, ANY),
  'Wasserstein, gradient penalty': (WASSERSTEIN | {'gradient_penalty': 0.1}, ALL),
  'non-saturating, R1': ({'loss': 'non_saturating', 'r1': 0.1}, ALL),
  'non-saturating, R1 and R2': ({'loss': 'non_saturating', **STABLE}, ALL),
  'relativistic, R1 and R2': ({'loss': 'relativistic', **STABLE}, ALL),
  'non-saturating, spectral': ({'loss': 'non_saturating', 'discriminator.spectral': True}, ALL),
  'hinge, spectral': ({'loss': 'hinge', 'discriminator.spectral': True}, ALL),
  'minimax, rates 5:1': (SLOW, LOST),
  'non-saturating, rates 5:1': ({'loss': 'non_saturating', **SLOW}, LOST),
  'non-saturating, minibatch, rates 5:1': (SLOW | MINIBATCH, ALL),
  'non-saturating, unrolled 5, rates 5:1': ({'loss': 'non_saturating', 'unroll': 5, **SLOW}, ALL),
}


def configured(changes):
  config = gaussians_gan.get_config()
  for name, value in changes.items():
    config.update_from_flattened_dict({name: value})
  return config


@functools.cache
def points():
  dataset = gaussians25('train')
  return np.stack([dataset.read(i)['image'] for i in range(dataset.num_examples)])


def train(config):
  """The config's own step, as often as it says, in one program; batches are drawn on the device."""
  steps = config.steps * config.generator_every
  experiment = gaussians_gan.build(config)
  step = make_train_step(experiment.objective, experiment.optimizers, experiment.averages)
  data = jnp.asarray(points())

  def body(state, key):
    rows = jax.random.randint(jax.random.fold_in(key, 7), (config.batch_size,), 0, len(data))
    state, metrics = step(state, {}, {'image': data[rows]}, key)
    return state, metrics['skipped'].total

  @functools.partial(jax.jit, compiler_options=OPTIMISED)
  def run(key):
    batch = {'image': data[: config.batch_size]}
    state = init_state(experiment.objective, experiment.optimizers, experiment.averages, batch, key)
    state, skipped = jax.lax.scan(body, state, jax.random.split(key, steps))
    images = experiment.objective.sample(sampling_params(state), {}, {}, jax.random.split(key, NUM))
    return images, skipped.sum()

  images, skipped = run(jax.random.key(config.seed))
  return np.asarray(images).reshape(-1, 2), float(skipped)


def covered(samples):
  return coverage(nearest_mode(samples, centres(), radius=4 * STD), num_modes=25)


def test_the_data_covers_itself_and_its_parts_do_not():
  dataset = gaussians25('test', num=5000, seed=3)
  records = [dataset.read(i) for i in range(5000)]
  samples = np.stack([record['image'] for record in records]).reshape(-1, 2)
  labels = np.array([record['label'] for record in records])
  assert len(np.unique(labels)) == 25 and samples.min() > -1 and samples.max() < 1
  found = nearest_mode(samples, centres(), radius=4 * STD)
  assert (found[found >= 0] == labels[found >= 0]).all() and (found >= 0).mean() > 0.998
  np.testing.assert_allclose((samples - centres()[labels]).std(0), STD, rtol=0.05)
  whole = coverage(found, num_modes=25)
  assert whole.covered == 25 and whole.kl < 0.01
  few = coverage(found[np.isin(found, [3, 4, -1])], num_modes=25)
  assert few.covered == 2 and abs(few.kl - np.log(25 / 2)) < 0.01


def test_coverage_counts_shares():
  modes = np.array([0] * 90 + [1] * 9 + [-1])
  result = coverage(modes, num_modes=2, share=0.1)
  assert result.covered == 2 and result.quality == 0.99
  assert coverage(modes, num_modes=2, share=0.2).covered == 1
  p = np.array([90, 9]) / 99
  np.testing.assert_allclose(result.kl, (p * np.log(2 * p)).sum())
  nothing = coverage(np.full(4, -1), num_modes=2)
  assert nothing.covered == 0 and nothing.quality == 0 and nothing.kl == np.inf
  assert stacked_mode(np.array([[1, 2, 3], [0, 0, 9]])).tolist() == [321, 900]


def test_an_unknown_split_is_refused():
  with pytest.raises(ValueError, match="no split 'valid'"):
    gaussians25('valid')


@pytest.mark.slow
@pytest.mark.parametrize('name', GAMES)
def test_games_on_25_gaussians(name):
  changes, (fewest, most) = GAMES[name]
  samples, skipped = train(configured(changes))
  result = covered(samples)
  print(f'| {name} | {result.covered} | {result.quality:.2f} | {result.kl:.2f} |')
  assert skipped == 0 and fewest <= result.covered <= most
  assert result.quality > 0.1 or most < 4
