"""What every generator and discriminator owes the game, and what makes each of them what it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models import dcgan, mlp, progan, r3gan, stylegan, stylegan2
from jaxgen.models.layers import critics

_rng = np.random.default_rng
LABELS = {'label': jnp.array([0, 1, 2, 1])}
FADE = {'fade': jnp.float32(0.4)}
_narrow: dict[str, Any] = {'base': 64, 'max_features': 8}


class Case(NamedTuple):
  generator: Any
  discriminator: Any
  latent: int
  cond: dict[str, jax.Array]
  image: tuple[int, int, int] = (8, 8, 3)


CASES = {
  'mlp': Case(mlp.MLPGenerator((1, 1, 2), 8, 2), mlp.MLPDiscriminator(8, 2, kernels=3), 4, {}, (1, 1, 2)),
  'dcgan': Case(dcgan.DCGANGenerator(16, 3, 4, 3), dcgan.DCGANDiscriminator(4, 3, kernels=2), 5, LABELS, (16, 16, 3)),
  'progan': Case(progan.ProGANGenerator(8, **_narrow), progan.ProGANDiscriminator(**_narrow), 8, FADE),
  'stylegan': Case(
    stylegan.stylegan_generator(8, width=8, layers=2, num_classes=3, **_narrow),
    progan.ProGANDiscriminator(fades=False, **_narrow),
    8,
    LABELS,
  ),
  'stylegan2': Case(
    stylegan2.stylegan2_generator(8, width=8, layers=2, num_classes=3, **_narrow),
    stylegan2.StyleGAN2Discriminator(num_classes=3, layers=2, **_narrow),
    8,
    LABELS,
  ),
  'r3gan': Case(
    r3gan.R3GANGenerator((8, 8), 1, 4, num_classes=3), r3gan.R3GANDiscriminator((8, 8), 1, 4, num_classes=3), 8, LABELS
  ),
}


def random_variables(net, *args, **kwargs):
  """Of a network, without compiling its initialisation; variances are positive, mappings large (their rate is 0.01)."""
  shapes = jax.eval_shape(lambda key: net.init(key, *args, **kwargs), jax.random.key(0))
  draw = _rng(5).standard_normal

  def leaf(path, shape):
    names = [entry.key for entry in path]
    mapped = 'mapping' in names and names[-2].startswith('dense')
    values = (100 if mapped else 0.3) * draw(shape.shape, np.float32)
    return jnp.asarray(np.abs(values) + 0.5 if names[-1] in ('var', 'sigma') else values)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


class Made(NamedTuple):
  case: Case
  generator: Any
  discriminator: Any
  generate: Any  # (variables, z, cond, keys) -> images
  judge: Any  # (variables, images, cond) -> logits
  z: jax.Array
  keys: jax.Array


@pytest.fixture(scope='module', params=CASES)
def made(request) -> Made:
  case = CASES[request.param]
  z, keys = jnp.asarray(_rng(0).standard_normal((4, case.latent), np.float32)), jax.random.split(jax.random.key(0), 4)
  images = jnp.zeros((4, *case.image))
  return Made(
    case,
    random_variables(case.generator, z, case.cond, keys=keys),
    random_variables(case.discriminator, images, case.cond),
    jax.jit(lambda v, z, cond, keys: case.generator.apply(v, z, cond, keys=keys)),
    jax.jit(lambda v, images, cond: case.discriminator.apply(v, images, cond)),
    z,
    keys,
  )


def test_an_image_depends_on_its_own_latent_and_label_alone(made):
  images = made.generate(made.generator, made.z, made.case.cond, made.keys)
  assert images.shape == (4, *made.case.image) and images.dtype == jnp.float32
  others = [(made.z.at[1].add(1.0), made.case.cond)]
  if 'label' in made.case.cond:
    others.append((made.z, {'label': made.case.cond['label'].at[1].set(0)}))
  for z, cond in others:
    changed = np.abs(made.generate(made.generator, z, cond, made.keys) - images).max((1, 2, 3)) > 1e-4
    assert changed.tolist() == [False, True, False, False]


def test_labels_leave_the_noise_its_say_in_dcgan():
  classes, z = 3, jnp.asarray(_rng(1).standard_normal((96, 8), np.float32))
  net, cond = dcgan.DCGANGenerator(8, 3, 4, classes), {'label': jnp.arange(96) % classes}
  keys = jax.random.split(jax.random.key(0), 96)
  variables = jax.jit(lambda key: net.init(key, z, cond, keys=keys, train=False))(jax.random.key(0))
  # Large parameters of labels are what a game soon has, whose other gradients average out.
  large = jax.tree.map(lambda leaf: 30 * leaf if leaf.shape[0] == classes else leaf, variables['params'])
  draw = jax.jit(lambda variables: net.apply(variables, z, cond, keys=keys, train=True, mutable=['batch_stats']))
  images, _ = draw(variables | {'params': large})
  by_label = np.asarray(images).reshape(32, classes, -1)
  assert by_label.std(0).mean() > 0.5 * np.asarray(images).std(0).mean()


def test_every_parameter_of_both_networks_matters(made):
  def total(params):
    generator = {**made.generator, 'params': params[0]}
    discriminator = {**made.discriminator, 'params': params[1]}
    images = made.generate(generator, made.z, made.case.cond, made.keys)
    logits = made.judge(discriminator, images, made.case.cond)
    assert logits.shape == (4,) and logits.dtype == jnp.float32
    return jnp.sum(logits * jnp.arange(1.0, 5.0)) + jnp.sum(jnp.sin(images))

  grads = jax.jit(jax.grad(total))((made.generator['params'], made.discriminator['params']))
  silent = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(grads) if not np.asarray(leaf).any()]
  assert not silent


def test_progan_starts_a_stage_from_the_images_of_the_last():
  """With the new size faded out, the image is the old one doubled, and the logit that of the image halved."""
  z, keys = jnp.asarray(_rng(0).standard_normal((4, 8), np.float32)), jax.random.split(jax.random.key(0), 4)
  small, large = progan.ProGANGenerator(4, **_narrow), progan.ProGANGenerator(8, **_narrow)
  params = random_variables(large, z, FADE, keys=keys)['params']
  old = {name: params[name] for name in random_variables(small, z, {}, keys=keys)['params']}
  out = {'fade': jnp.float32(0)}
  draw = jax.jit(lambda net, params, cond: net.apply({'params': params}, z, cond, keys=keys), static_argnums=0)
  before, after = draw(small, old, {}), draw(large, params, out)
  np.testing.assert_allclose(after, np.asarray(before).repeat(2, 1).repeat(2, 2), rtol=1e-5, atol=1e-6)
  judge, images = progan.ProGANDiscriminator(**_narrow), jnp.asarray(_rng(1).standard_normal((4, 8, 8, 3), np.float32))
  params = random_variables(judge, images, FADE)['params']
  halved = images.reshape(4, 4, 2, 4, 2, 3).mean((2, 4))
  old = {name: params[name] for name in random_variables(judge, halved, FADE)['params']}
  logits = jax.jit(lambda params, images, cond: judge.apply({'params': params}, images, cond))
  np.testing.assert_allclose(logits(params, images, out), logits(old, halved, {}), rtol=1e-5)


def test_adain_gives_every_channel_the_styles_mean_and_deviation():
  x = jnp.asarray(_rng(0).standard_normal((2, 6, 6, 3), np.float32)) * 5 + 2
  scale, shift = jnp.asarray(_rng(1).standard_normal((2, 2, 3), np.float32))
  y = stylegan.adain(x, scale, shift)
  np.testing.assert_allclose(y.mean((1, 2)), shift, atol=1e-5)
  np.testing.assert_allclose(y.std((1, 2)), np.abs(scale), rtol=1e-4)


def test_r3gan_starts_as_residual_identities():
  """The last convolution of each block starts at zero."""
  x = jnp.asarray(_rng(0).standard_normal((2, 4, 4, 8), np.float32))
  block = r3gan.Block(4, 8)
  params = jax.jit(block.init)(jax.random.key(0), x)
  np.testing.assert_array_equal(block.apply(params, x), x)
  deviation = float(params['params']['conv_1']['kernel'].std())
  np.testing.assert_allclose(deviation, np.sqrt(2 / 1.04 / 8 / 8**0.5), rtol=0.25)
  assert params['params']['conv_2']['kernel'].shape == (3, 3, 4, 16)


def test_minibatch_discrimination_is_its_formula():
  x = jnp.asarray(_rng(0).standard_normal((4, 5), np.float32))
  layer = critics.MinibatchDiscrimination(kernels=2, size=3)
  matrix = 0.3 * _rng(1).standard_normal((5, 6)).astype(np.float32)
  m = (np.asarray(x) @ matrix).reshape(4, 2, 3)
  expected = np.zeros((4, 2))
  for i in range(4):
    for j in range(4):
      if i != j:
        expected[i] += np.exp(-np.abs(m[i] - m[j]).sum(-1)) / 3
  np.testing.assert_allclose(layer.apply({'params': {'matrix': jnp.asarray(matrix)}}, x), expected, rtol=1e-5)


def test_spectral_norm_divides_by_the_largest_singular_value():
  net, x = mlp.MLPDiscriminator(16, 1, spectral=True), jnp.ones((4, 1, 1, 2))
  variables = random_variables(net, x, {})
  update = jax.jit(lambda v: net.apply(v, x, {}, train=True, mutable=['batch_stats'])[1])
  for _ in range(30):
    variables = {**variables, **update(variables)}
  for name in ('dense_0', 'out'):
    kernel = np.asarray(variables['params'][name]['kernel'])
    norms = jax.tree.leaves_with_path(variables['batch_stats'][f'{name}_norm'])
    sigma = [float(leaf) for path, leaf in norms if path[-1].key.endswith('sigma')]
    assert len(sigma) == 1
    np.testing.assert_allclose(sigma, np.linalg.svd(kernel, compute_uv=False)[0], rtol=1e-3)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: dcgan.doublings(24), 'images of side 24'),
    (lambda: dcgan.doublings(4), 'images of side 4'),
    (lambda: progan.sizes(12), 'resolution is 12'),
    (
      lambda: jax.eval_shape(r3gan.R3GANDiscriminator((8,)).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), {}),
      'have 2 sizes down to 4x4, but there are 1 widths',
    ),
    (
      lambda: jax.eval_shape(r3gan.Block(5, 1).init, jax.random.key(0), jnp.zeros((1, 4, 4, 8))),
      '16 features do not divide into groups of 5',
    ),
  ],
)
def test_sizes_that_cannot_be_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
