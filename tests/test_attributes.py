"""What images show, as a classifier of attributes sees it, with chance and real images beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxgen import data, sharding
from jaxgen.config_parts import grid_and_fid
from jaxgen.data.datasets.avatars_styles import ATTRIBUTES
from jaxgen.evaluators import attributes as evaluators
from jaxgen.evaluators.avatars import avatar_attributes
from jaxgen.evaluators.base import Context
from jaxgen.evaluators.generate import make_generate
from jaxgen.metrics.attributes import accuracy
from jaxgen.models.attributes import predict
from jaxgen.models.conv_classifier import ConvClassifier
from jaxgen.objectives.attributes import NAME, attribute_classifier, moved
from jaxgen.pretrained import attribute_classifier as shipped
from jaxgen.train_state import TrainState

NAMES, SIZES = ('color', 'side'), (3, 2)
TRUTH = np.array([[0, 1], [0, -1], [1, -1], [0, 0]])


def test_accuracy_counts_what_the_truth_tells():
  found = accuracy(np.array([[0, 1], [2, 1], [1, 0], [0, 1]]), TRUTH, names=NAMES)
  assert found.overall == pytest.approx(4 / 6)
  assert found.by_name == {'color': 0.75, 'side': 0.5}
  assert found.chance == pytest.approx((3 + 1) / 6)


def test_accuracy_of_nothing():
  with pytest.raises(ValueError, match='has no attribute'):
    accuracy(np.zeros((2, 2), int), np.full((2, 2), -1), names=NAMES)
  with pytest.raises(ValueError, match='and 3 names'):
    accuracy(np.zeros((2, 2), int), np.zeros((2, 2), int), names='abc')


def pictures(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """A bar of one of three colours on the left or on the right; the side of a third of them is not told."""
  rng = np.random.default_rng(seed)
  color, side = rng.integers(3, size=num), rng.integers(2, size=num)
  images = rng.normal(0, 0.1, (num, 8, 8, 3)).astype(np.float32)
  for i in range(num):
    images[i, :, 4 * side[i] : 4 * side[i] + 4, color[i]] += 1
  return images, np.stack([color, np.where(rng.random(num) < 0.3, -1, side)], axis=1).astype(np.int32)


@pytest.fixture(scope='module')
def trained():
  net = ConvClassifier(num_classes=sum(SIZES), widths=(8, 8))
  objective = attribute_classifier(net, sizes=SIZES, shift=1)
  images, truth = pictures(256, 0)
  batch = {'image': jnp.asarray(images), 'attributes': jnp.asarray(truth)}
  params = jax.jit(objective.init)(jax.random.key(0), {}, batch)['params']
  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(params, state, key):
    (loss, aux), grads = jax.value_and_grad(lambda p: objective.phases[0].loss(p, None, {}, batch, key), has_aux=True)(
      params
    )
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss, aux.metrics

  state, losses = optimizer.init(params), []
  for i in range(60):
    params, state, loss, metrics = step(params, state, jax.random.key(i))
    losses.append(float(loss))
  return net, objective, params, losses, metrics


def test_a_classifier_learns_all_attributes(trained):
  net, _, params, losses, metrics = trained
  assert losses[0] == pytest.approx(np.log(3) + 0.7 * np.log(2), rel=0.2)  # Eq. 1 of who knows nothing
  assert losses[-1] < 0.1
  images, truth = pictures(64, 1)
  predicted = np.asarray(predict(net, params[NAME], jnp.asarray(images), sizes=SIZES))
  assert accuracy(predicted, truth, names=NAMES).overall > 0.97
  assert float(metrics['accuracy']) > 0.97


def test_an_attribute_that_is_not_told_has_no_gradient(trained):
  _, objective, params, _, _ = trained
  images, _ = pictures(4, 2)
  batch = {'image': jnp.asarray(images), 'attributes': jnp.array([[1, -1]] * 4)}
  grads = jax.jit(jax.grad(lambda p: objective.phases[0].loss(p, None, {}, batch, jax.random.key(0))[0]))(params)
  kernel = grads[NAME]['out']['kernel']
  assert float(jnp.abs(kernel[:, 3:]).max()) == 0
  assert float(jnp.abs(kernel[:, :3]).max()) > 0


def test_moving_keeps_edges():
  images = jnp.arange(16.0).reshape(1, 4, 4, 1)
  move = jax.jit(lambda i: moved(images, jax.random.key(i), 1))
  found = {tuple(np.asarray(move(i)).ravel()) for i in range(60)}
  assert len(found) == 9
  assert tuple(np.arange(16.0)) in found


class Writer:
  def working(self, message):
    pass


def test_samples_are_asked_about_with_real_images_beside_them(trained):
  net, _, params, _, _ = trained
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  images, truth = pictures(12, 3)
  shown = np.where(truth[:, 1] < 0, 0, truth[:, 1])

  def sample(params, frozen, cond, keys):
    """Draws the requested colour, and always on the left."""
    image = jax.nn.one_hot(cond['color'], 3)[:, None, None] * (jnp.arange(8) < 4)[None, None, :, None]
    return jnp.broadcast_to(image, (len(keys), 8, 8, 3))

  evaluator = evaluators.attributes(
    make_generate(sample, mesh=mesh, batch_size=5),
    lambda context, x: np.asarray(predict(net, params[NAME], jnp.asarray(x), sizes=SIZES)),
    mesh=mesh,
    cond={'color': truth[:, 0]},
    truth=np.stack([truth[:, 0], shown], axis=1),
    real=images,
    names=NAMES,
    every=1,
  )
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(step=zero, params={'net': {}}, opt_state={}, ema={}, extra={}, bad_steps=zero)
  found = evaluator.run(Context(0, state, {}, Writer(), None))
  assert found['attributes/color'] == 1.0
  assert found['attributes/side'] == pytest.approx(np.mean(shown == 0))
  assert found['attributes'] == pytest.approx((1 + found['attributes/side']) / 2)
  assert found['attributes_real'] > found['attributes_chance']


def test_a_saved_classifier_says_the_same(tmp_path, trained):
  net = ConvClassifier(sum(shipped.SIZES), widths=(4, 6), strides=(4, 4))
  images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
  params = net.init(jax.random.key(0), jnp.asarray(images), jnp.zeros(3), {})['params']
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), params)
  shipped.save(net, params, tmp_path / 'a.safetensors')
  found = shipped.load(tmp_path / 'a.safetensors')(images)
  np.testing.assert_array_equal(found, predict(net, params, jnp.asarray(images), sizes=shipped.SIZES))
  np.testing.assert_array_equal(found, shipped.load(tmp_path / 'a.safetensors')(images.repeat(2, 1).repeat(2, 2)))
  with pytest.raises(ValueError, match='images are 30x30'):
    shipped.load(tmp_path / 'a.safetensors')(images[:, :30, :30])
  about = shipped.safetensors_file.metadata(tmp_path / 'a.safetensors') | {'vocabulary': 'other'}
  shipped.safetensors_file.write(tmp_path / 'a.safetensors', {'x': np.zeros(1)}, metadata=about)
  shipped.load.cache_clear()
  with pytest.raises(ValueError, match='classifies other attributes'):
    shipped.load(tmp_path / 'a.safetensors')


def test_the_classifier_in_the_package_knows_avatars_and_real_pictures_are_what_their_prompts_say():
  splits = {'test': data.avatars32('test'), 'seen': data.avatars32('seen')}
  mesh = sharding.make_mesh(devices=jax.devices()[:1])

  def sample(params, frozen, cond, keys):
    return cond['picture']

  evaluate = avatar_attributes(
    make_generate(sample, mesh=mesh, batch_size=50),
    shipped.load(),
    mesh=mesh,
    splits=splits,
    encode=lambda prompts: {'picture': prompts.images},
    number=100,
    every=1,
  )
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(step=zero, params={'net': {}}, opt_state={}, ema={}, extra={}, bad_steps=zero)
  for evaluator in evaluate:
    found = evaluator.run(Context(0, state, {}, Writer(), None))
    assert found[evaluator.name] == found[f'{evaluator.name}_real'] > 0.95
    assert found[f'{evaluator.name}_chance'] < 0.5
    assert {key.partition('/')[2] for key in found if '/' in key} <= set(ATTRIBUTES)


def test_a_number_or_an_interval_of_0_makes_no_evaluator():
  mesh, splits = sharding.make_mesh(devices=jax.devices()[:1]), {'test': data.avatars32('test')}
  generate = make_generate(lambda params, frozen, cond, keys: cond['image'], mesh=mesh, batch_size=8)
  for number, every in ((0, 5), (5, 0)):
    options = {'mesh': mesh, 'splits': splits, 'encode': lambda prompts: {}, 'number': number, 'every': every}
    assert avatar_attributes(generate, lambda images: images, **options) == ()
  options = {'mesh': mesh, 'reference': lambda: splits['test'], 'cond': lambda num: {}, 'protocol': {}}
  for every, num in ((0, 8), (5, 0)):
    c = ConfigDict({'samples': {'every': every}, 'fid': {'every': every, 'num_samples': num, 'batch_size': 8}})
    assert grid_and_fid(c, generate, shown={'cond': {}, 'num': num}, **options) == ()
