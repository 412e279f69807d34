"""Stacked digits: what a mode is, the classifier that is trained beside a generator, and the modes it counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from jaxgen import sharding
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.stacked import stacked
from jaxgen.evaluators.base import Context
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.stacked import stacked_modes
from jaxgen.models.conv_classifier import ConvClassifier
from jaxgen.objectives.base import Objective
from jaxgen.objectives.gan.channel_classifier import NAME, with_channel_classifier
from jaxgen.train_state import init_state
from jaxgen.train_step import make_train_step
from jaxgen.writer import silent

CLASSES = 4
PATTERNS = np.kron(np.eye(4).reshape(4, 2, 2, 1), np.ones((1, 4, 4, 1))).astype(np.float32) * 2 - 1  # a bright quarter
NET = ConvClassifier(CLASSES, widths=(4,))


def quarters(split='train', num=40, channels=1):
  """Images whose label is which quarter is bright."""

  def decode(index):
    return {'image': PATTERNS[index % CLASSES].repeat(channels, axis=-1), 'label': np.int32(index % CLASSES)}

  return Dataset('quarters', split, range(num), decode, f'quarters-{split}', tuple('abcd'))


def test_a_mode_is_its_channels_classes():
  dataset = stacked(quarters(), num=200, seed=1)
  records = [dataset.read(index) for index in range(200)]
  for record in records:
    classes = [int(record['label']) // 4**place % 4 for place in range(3)]
    np.testing.assert_array_equal(record['image'], np.concatenate([PATTERNS[c] for c in classes], axis=-1))
  modes = np.array([record['label'] for record in records])
  assert len(np.unique(modes)) > 55 and dataset.num_classes == 64  # all but 64 exp(-200 / 64) = 3
  assert dataset.class_names[modes[0]] == ', '.join('abcd'[modes[0] // 4**place % 4] for place in range(3))
  again = stacked(quarters(), num=200, seed=1)
  assert again.fingerprint == dataset.fingerprint and again.read(7)['label'] == modes[7]
  other = stacked(quarters(), num=200, seed=2)
  assert other.fingerprint != dataset.fingerprint and [other.read(i)['label'] for i in range(200)] != modes.tolist()


def test_what_cannot_be_stacked_is_refused():
  with pytest.raises(ValueError, match='quarters has images of 3 channels and 4 classes; only gray images'):
    stacked(quarters(channels=3))
  with pytest.raises(ValueError, match='1 channels and 0 classes'):
    stacked(quarters()._replace(class_names=()))


@pytest.fixture(scope='module')
def trained():
  """A classifier after 60 steps beside a generator that draws three modes; what its steps said."""
  drawn = jnp.asarray(np.stack([PATTERNS[[0, 1, 2], ..., 0], PATTERNS[[3, 3, 3], ..., 0], PATTERNS[[0, 0, 1], ..., 0]]))
  images = jnp.moveaxis(drawn, 1, -1)

  def sample(params, frozen, cond, keys):
    return images[jax.vmap(lambda key: jax.random.randint(key, (), 0, 3))(keys)]

  base = Objective(lambda key, frozen, batch: {'params': {}, 'extra': {}}, (), sample)
  objective = with_channel_classifier(base, NET, num_classes=CLASSES)
  dataset = stacked(quarters(), num=64)
  records = [dataset.read(index) for index in range(64)]
  batch = {name: jnp.asarray(np.stack([record[name] for record in records])) for name in ('image', 'label')}
  optimizers = {NAME: optax.adam(0.02)}
  step = make_train_step(objective, optimizers, {})

  @jax.jit
  def run(key):
    state = init_state(objective, optimizers, {}, batch, key)
    return jax.lax.scan(lambda state, key: step(state, {}, batch, key), state, jax.random.split(key, 60))

  state, metrics = run(jax.random.key(0))
  return objective, state, {name: np.asarray(mean.total) for name, mean in metrics.items()}


def test_the_classifier_learns_each_channel(trained):
  _, _, metrics = trained
  assert 1 < metrics['loss'][0] < 2.5  # log 4 = 1.4
  assert metrics['loss'][-1] < 0.05
  assert metrics['accuracy'][0] < 0.8 and metrics['accuracy'][-1] == 1


def test_modes_of_samples_are_counted_by_the_classifier(trained, tmp_path):
  objective, state, _ = trained
  mesh = sharding.make_mesh()
  evaluator = stacked_modes(
    make_generate(objective.sample, mesh=mesh, batch_size=16),
    NET,
    mesh=mesh,
    held_out=stacked(quarters('test'), num=30),
    num_classes=CLASSES,
    every=1,
    num=60,
  )
  values = evaluator.run(Context(1, state, {}, silent(), epath.Path(tmp_path)))
  assert values['modes'] == 3 and values['modes_quality'] == 1 and values['modes_accuracy'] == 1
  np.testing.assert_allclose(values['modes_kl'], np.log(64 / 3), atol=0.1)
  same = jax.tree.map(jnp.zeros_like, state.params)  # one class for all
  values = evaluator.run(Context(1, state.replace(params=same), {}, silent(), epath.Path(tmp_path)))
  assert values['modes'] == 1 and 0.1 < values['modes_accuracy'] < 0.5
