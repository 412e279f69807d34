"""GANs: the games' formulas, penalties on networks whose slopes are known, phases, state, devices, resuming."""

import shutil

import flax.linen as nn
import gan_toys as toys
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import sample, sharding
from jaxgen.checkpoint import Checkpoints
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan import regularizers
from jaxgen.objectives.gan.augmentation import no_augmentation
from jaxgen.objectives.gan.gan import Unroll, gan
from jaxgen.optimizers import clipped, lazy_adam
from jaxgen.train import abstract_state, train
from jaxgen.train_state import init_state, sampling_params
from jaxgen.train_step import make_train_step

_softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
_sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
FORMULAS = {
  'minimax': (lambda r, f: -np.log(_sigmoid(r)) - np.log(1 - _sigmoid(f)), lambda r, f: np.log(1 - _sigmoid(f))),
  'non_saturating': (lambda r, f: -np.log(_sigmoid(r)) - np.log(1 - _sigmoid(f)), lambda r, f: -np.log(_sigmoid(f))),
  'hinge': (lambda r, f: np.maximum(0, 1 - r) + np.maximum(0, 1 + f), lambda r, f: -f),
  'least_squares': (lambda r, f: 0.5 * (r - 1) ** 2 + 0.5 * f**2, lambda r, f: 0.5 * (f - 1) ** 2),
  'wasserstein': (lambda r, f: f - r, lambda r, f: -f),
  'relativistic': (lambda r, f: -np.log(_sigmoid(r - f)), lambda r, f: -np.log(_sigmoid(f - r))),
}


@pytest.mark.parametrize('name', FORMULAS)
def test_losses_are_their_papers(name):
  r, f = np.random.default_rng(0).standard_normal((2, 50)) * 2
  loss, (discriminator, generator) = getattr(gan_losses, name), FORMULAS[name]
  np.testing.assert_allclose(loss.discriminator(jnp.asarray(r), jnp.asarray(f)), discriminator(r, f), atol=1e-5)
  np.testing.assert_allclose(loss.generator(jnp.asarray(r), jnp.asarray(f)), generator(r, f), atol=1e-5)


def test_penalties_of_a_discriminator_whose_slope_is_known():
  """D(x) = a . x + |x|^2 / 2 has the gradient a + x."""
  rng = np.random.default_rng(1)
  a, real, fake = (rng.standard_normal((n, 2, 2, 1)).astype(np.float32) for n in (1, 5, 5))

  def judge(x):
    return jnp.sum(a * x + x**2 / 2, axis=(1, 2, 3))

  def value(penalty, step=0):
    return penalty.value(judge, jnp.asarray(real), jnp.asarray(fake), jnp.int32(step), jax.random.key(0))

  slopes = [((a + x) ** 2).sum((1, 2, 3)) for x in (real, fake)]
  np.testing.assert_allclose(value(regularizers.r1(3.0)), 1.5 * slopes[0], rtol=1e-5)
  np.testing.assert_allclose(value(regularizers.r2(lambda step: 2.0 * step), 4), 4 * slopes[1], rtol=1e-5)
  u = np.asarray(jax.random.uniform(jax.random.key(0), (5, 1, 1, 1)))
  slope = np.sqrt(((a + u * real + (1 - u) * fake) ** 2).sum((1, 2, 3)))
  np.testing.assert_allclose(value(regularizers.gradient_penalty(10.0)), 10 * (slope - 1) ** 2, rtol=1e-4)


class _Linear(nn.Module):
  """image = sum over layers of w_l A_l; w = z for both layers."""

  def setup(self):
    self.matrix = self.param('matrix', nn.initializers.normal(1.0), (2, 3, 16))

  def __call__(self, z, cond, *, keys, train=False):
    return self.images(self.styles(z, cond), None)

  def styles(self, z, cond):
    return jnp.repeat(z[:, None], 2, axis=1)

  def images(self, ws, noise):
    return jnp.einsum('bld,ldp->bp', ws, self.matrix).reshape(-1, 4, 4, 1)


def test_path_length_of_a_linear_generator():
  net, z = _Linear(), jnp.ones((4, 3))
  keys = jax.random.split(jax.random.key(3), 4)
  variables = net.init(jax.random.key(0), z, {}, keys=keys)
  penalty = regularizers.path_length(2.0, decay=0.25, shrink=2)
  each, metrics, kept = penalty.value(net, variables, jnp.float32(1.0), z, {}, keys)
  matrix = np.asarray(variables['params']['matrix'])
  y_keys = [jax.random.split(key)[1] for key in keys[::2]]
  y = np.stack([jax.random.normal(key, (4, 4, 1)).reshape(16) for key in y_keys]) / 4
  lengths = np.sqrt((np.einsum('ldp,bp->bld', matrix, y) ** 2).sum(2).mean(1))
  mean = 1.0 + 0.25 * (lengths.mean() - 1.0)
  np.testing.assert_allclose(each, 2 * (lengths - mean) ** 2, rtol=1e-4)
  np.testing.assert_allclose([kept, metrics['length']], [mean, lengths.mean()], rtol=1e-5)


@pytest.fixture(scope='module')
def start():
  """The toys' objective and its state, and the step on one device, compiled once."""
  objective = toys.objective()
  state = jax.jit(lambda key: init_state(objective, toys.OPTIMIZERS, toys.AVERAGES, toys.batch(), key))
  return objective, jax.device_get(state(jax.random.key(0)))


def _steps(objective, state, mesh, num=3):
  shardings = sharding.shard_tree(state, mesh)
  step = jax.jit(
    sharding.under(mesh, make_train_step(objective, toys.OPTIMIZERS, toys.AVERAGES)),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  state = jax.device_put(state, shardings)
  batch = jax.device_put(toys.batch(), sharding.batch_sharding(mesh))
  history = []
  for i in range(num):
    state, metrics = step(state, {}, batch, jax.random.key(i))
    history.append({name: float(mean.total) for name, mean in metrics.items() if mean.count})
  return history, jax.device_get(state)


@pytest.fixture(scope='module')
def single(start):
  return _steps(*start, sharding.make_mesh(data=1, devices=jax.devices()[:1]))


@pytest.mark.slow
def test_sharded_over_eight_devices_equals_one(start, single):
  """Batch norm, running statistics, groups of the batch, spectral norm, ADA and the mean path length included."""
  history, after = _steps(*start, sharding.make_mesh(data=4, fsdp=2))
  different = [
    (step, name, value, theirs[name])
    for step, (ours, theirs) in enumerate(zip(history, single[0], strict=True))
    for name, value in ours.items()
    if not np.isclose(value, theirs[name], rtol=1e-4, atol=1e-5)
  ]
  assert different == [], '\n'.join(map(str, different))
  for part in ('params', 'ema', 'extra'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      getattr(after, part),
      getattr(single[1], part),
    )


def test_everything_a_gan_keeps_has_moved(start, single):
  (_, before), (history, after) = start, single
  old, new = (jax.tree.leaves_with_path((state.params, state.extra)) for state in (before, after))
  unmoved = [
    jax.tree_util.keystr(path) for (path, a), (_, b) in zip(old, new, strict=True) if (np.asarray(a) == b).all()
  ]
  # sigma and u of spectral norm move too; the probability has moved once in three steps
  assert unmoved == []
  assert {'r1/penalty', 'path_length/mean', 'discriminator/augmentation'} <= history[0].keys()
  assert 'r1/penalty' not in history[1]  # lazy
  signs = [line['discriminator/real_sign'] for line in history]
  moved = 2 * 16 / 200 * np.sign((signs[0] + signs[1]) / 2 - 0.6)
  np.testing.assert_allclose(after.extra['augmentation']['probability'], 0.3 + moved, rtol=1e-5)


def test_lazy_losses_have_the_gain_of_their_interval(start, single):
  for name in ('r1', 'path_length'):
    line = single[0][0]
    np.testing.assert_allclose(line[f'{name}/loss'], 2 * line[f'{name}/penalty'], rtol=1e-6)
  phases = start[0].phases
  assert [(p.name, p.trains, p.every) for p in phases] == [
    ('generator', 'generator', 1),
    ('path_length', 'generator', 2),
    ('discriminator', 'discriminator', 1),
    ('r1', 'discriminator', 2),
  ]


@pytest.mark.slow
def test_resuming_is_bit_identical(tmp_path):
  """Killed after step 3: the folder holds nothing later."""
  whole = jax.device_get(train(toys.experiment(), tmp_path / 'whole'))
  shutil.copytree(tmp_path / 'whole', tmp_path / 'killed')
  shutil.rmtree(tmp_path / 'killed' / 'checkpoints' / '6')
  checkpoints = Checkpoints(tmp_path / 'killed' / 'checkpoints', None)
  at_three = checkpoints.restore(abstract_state(toys.experiment()), 3)
  checkpoints.close()
  resumed = jax.device_get(train(toys.experiment(), tmp_path / 'killed'))
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  assert whole.extra['augmentation']['probability'] != at_three.extra['augmentation']['probability']
  assert whole.extra['path_length'] != at_three.extra['path_length']
  # what is sampled from the folder has the running statistics of the checkpoint, not those of the start
  trained = sample.restore(toys.experiment(), tmp_path / 'whole')
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(trained.params), jax.device_get(sampling_params(whole)))
  statistics = trained.params['extra']['generator']['batch_stats']['norm']
  assert (np.asarray(statistics['mean']) != 0).any()
  raw = sample.restore(toys.experiment(), tmp_path / 'whole', average='none').params
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(raw['generator']), whole.params['generator'])


def test_an_image_depends_on_its_key_alone(start, single):
  objective, params = start[0], sampling_params(single[1])
  draw = jax.jit(lambda keys: objective.sample(params, {}, {}, keys))
  keys = jax.random.split(jax.random.key(0), 8)
  together = draw(keys)
  assert together.shape == (8, *toys.SHAPE) and np.abs(together).max() <= 1
  np.testing.assert_allclose(draw(keys[3:4]), together[3:4], atol=1e-6)


class _Slope(nn.Module):
  """D(x) = c x, of images of one pixel."""

  @nn.compact
  def __call__(self, images, cond, *, train=False):
    return images[:, 0, 0, 0] * self.param('c', nn.initializers.constant(0.5), ())


class _Point(nn.Module):
  """G(z) = g, whatever z."""

  @nn.compact
  def __call__(self, z, cond, *, keys, train=False):
    return jnp.broadcast_to(self.param('g', nn.initializers.constant(2.0), ()), (len(z), 1, 1, 1))


SGD = optax.sgd(0.1)


def _dirac(optimizer=SGD, **kwargs):
  """The game of Mescheder et al. 2018: data at 0, a generator at g, a discriminator of slope c; one step."""
  objective = gan(_Point(), _Slope(), latent=1, loss=gan_losses.wasserstein, **kwargs)
  optimizers = {'generator': SGD, 'discriminator': optimizer}
  batch = {'image': jnp.zeros((4, 1, 1, 1))}

  @jax.jit
  def play(key):
    state = init_state(objective, optimizers, {}, batch, key)
    return make_train_step(objective, optimizers, {})(state, {}, batch, jax.random.key(1))[0]

  state = play(jax.random.key(0))
  return float(state.params['generator']['g']), float(state.params['discriminator']['c'])


def test_the_dirac_game_by_hand():
  g = 2 + 0.1 * 0.5  # g climbs D
  np.testing.assert_allclose(_dirac(), (g, 0.5 - 0.1 * g), rtol=1e-6)
  # c after k steps of descent of c g, c - k rate g; d/dg of -(c - k rate g) g is -c + 2 k rate g
  ahead = 2 - 0.1 * (-0.5 + 2 * 3 * 0.01 * 2)
  np.testing.assert_allclose(_dirac(unroll=Unroll(3, optax.sgd(0.01)))[0], ahead, rtol=1e-5)
  # Adam goes the same way, c - k rate, however steep
  adam = optax.adam(0.01, eps_root=1e-12)
  np.testing.assert_allclose(_dirac(adam, unroll=Unroll(3, adam))[0], 2 + 0.1 * (0.5 - 3 * 0.01), rtol=1e-5)
  # R1 adds gamma c to the gradient of c
  np.testing.assert_allclose(
    _dirac(discriminator_penalties=(regularizers.r1(0.5),)), (g, 0.5 - 0.1 * (g + 0.5 * 0.5)), rtol=1e-6
  )


def test_clipped_and_lazy_optimizers():
  params = {'a': jnp.array([0.3, -0.05])}
  optimizer = clipped(optax.sgd(1.0), 0.1)
  updates, _ = optimizer.update({'a': jnp.array([0.1, 0.1])}, optimizer.init(params), params)
  np.testing.assert_allclose(optax.apply_updates(params, updates)['a'], [0.1, -0.1], rtol=1e-6)
  # 16 steps with R1 every 16th are 17 updates: the moments forget, and the parameters move, as much as in 16
  lazy, plain = lazy_adam(0.1, b1=0.5, b2=0.9, every=16), optax.adam(0.1, b1=0.5, b2=0.9)
  moments = []
  for optimizer, updates_done in ((lazy, 17), (plain, 16)):
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    kept = state[0].mu['a'] / params['a'] / (1 - (0.5 ** (16 / 17) if optimizer is lazy else 0.5))
    moments.append(kept * (0.5 ** (16 / 17) if optimizer is lazy else 0.5) ** updates_done)
  np.testing.assert_allclose(moments[0], moments[1], rtol=1e-5)


def test_a_condition_that_the_batch_lacks_is_refused():
  objective = toys.objective(cond=('label',))
  with pytest.raises(ValueError, match=r"cond names \['label'\], which the batch does not have; it has \['image'\]"):
    objective.init(jax.random.key(0), {}, toys.batch())
  assert no_augmentation.init() == {}
