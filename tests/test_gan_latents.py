"""Walks, truncation, mixing, projection, path lengths, animations, and what watches for collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from test_gan_networks import random_variables

from jaxgen import animation, sharding
from jaxgen.evaluators import modes as mode_evaluators
from jaxgen.evaluators import walk as walks
from jaxgen.evaluators.base import Context
from jaxgen.generation import gan_latents
from jaxgen.metrics import perceptual_path_length as ppl
from jaxgen.models.stylegan2 import stylegan2_generator
from jaxgen.train_state import TrainState

_net = stylegan2_generator(8, width=8, layers=2, base=64, max_features=8)


@pytest.fixture(scope='module')
def params():
  z, keys = jnp.zeros((1, 8)), jax.random.split(jax.random.key(0), 1)
  made = random_variables(_net, z, {}, keys=keys)
  return {'generator': made.pop('params'), 'extra': {'generator': made}}


def test_a_walk_goes_by_its_stops_and_back_to_the_first():
  path = np.asarray(gan_latents.walk(jax.random.key(0), latent=6, stops=3, frames=4))
  stops = np.asarray(jax.random.normal(jax.random.key(0), (3, 6)))
  np.testing.assert_allclose(path[::4], stops, atol=1e-5)
  for i in range(3):  # half way: the two ends in equal parts
    ends = stops[[i, (i + 1) % 3]]
    angle = np.arccos((ends[0] * ends[1]).sum() / np.prod(np.linalg.norm(ends, axis=1)))
    np.testing.assert_allclose(path[4 * i + 2], ends.sum(0) * np.sin(angle / 2) / np.sin(angle), atol=1e-4)


def test_truncation_to_nothing_is_the_mean_image(params):
  z = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8), np.float32))
  draw = jax.jit(
    lambda z, cutoff: gan_latents.images_of(_net, params, z, {}, truncation=0.0, cutoff=cutoff), static_argnums=1
  )
  images = draw(z, None)
  np.testing.assert_allclose(images, images[:1].repeat(3, 0), atol=1e-6)
  assert np.abs(draw(z, 1) - draw(z, 1)[:1]).max() > 1e-4


def test_mixing_takes_coarse_layers_of_one_and_fine_ones_of_the_other():
  a, b = jnp.zeros((2, 4, 3)), jnp.ones((2, 4, 3))
  assert gan_latents.mix(a, b, layer=3)[0, :, 0].tolist() == [0, 0, 0, 1]


@pytest.mark.slow
def test_projection_finds_an_image_of_the_generator_and_w_plus_comes_closer(params):
  made = gan_latents.variables(params)
  rng = np.random.default_rng(2)
  ws = jnp.asarray(rng.standard_normal((1, _net.num_styles, 8), np.float32))
  z = jnp.asarray(rng.standard_normal((1, 8), np.float32))
  target = jnp.clip(_net.apply(made, ws, gan_latents.constant_noise, method='images')[0], -1, 1)
  inside = gan_latents.images_of(_net, params, z, {})[0]

  def project(image, each_layer, noise_weight=1.0):
    return jax.jit(
      lambda image: gan_latents.project(
        _net,
        params,
        image,
        jax.random.key(0),
        distance=lambda a, b: jnp.mean((a - b) ** 2, axis=(1, 2, 3)),
        each_layer=each_layer,
        steps=300,
        samples=256,
        noise_weight=noise_weight,
      )
    )(image)

  plain, plus = project(target, False), project(target, True)
  assert plain.ws.shape == plus.ws.shape == (_net.num_styles, 8)
  np.testing.assert_array_equal(plain.ws, plain.ws[:1].repeat(_net.num_styles, 0))
  assert plus.distance < 0.7 * plain.distance
  found = project(inside, False, noise_weight=0.0)  # r would be far more than these distances, and hold the noise
  assert found.distance < 0.05 * found.distances[0]


def test_path_length_of_a_linear_generator():
  rng = np.random.default_rng(0)
  matrix = jnp.asarray(rng.standard_normal((3, 5), np.float32))
  found = ppl.perceptual_path_length(
    lambda keys: jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys),
    lambda w, keys: w @ matrix,
    lambda a, b: jnp.sum((a - b) ** 2, axis=-1),
    jax.random.key(0),
    num=48,
    batch_size=32,
    eps=0.01,
  )
  keys = [jax.random.split(jax.random.fold_in(jax.random.key(0), i), 4) for i in range(48)]
  ends = np.stack([[jax.random.normal(key[j], (3,)) for j in (0, 1)] for key in keys])
  lengths = (((ends[:, 1] - ends[:, 0]) @ np.asarray(matrix)) ** 2).sum(1)
  np.testing.assert_allclose(found, ppl.trimmed_mean(lengths), rtol=2e-3)


def test_extremes_are_left_out_of_the_mean():
  values = np.arange(1000.0)
  assert ppl.trimmed_mean(values) == values[9:991].mean()
  assert ppl.trimmed_mean(np.array([1.0, 2.0])) == 1.5


def test_a_great_circle_has_its_angle():
  a, b = jnp.array([2.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 0.5])
  for t in (0.0, 0.25, 1.0):
    expected = [np.cos(t * np.pi / 2), 0, np.sin(t * np.pi / 2)]
    np.testing.assert_allclose(ppl.great_circle(a, b, jnp.float32(t)), expected, atol=1e-6)


class _Texts:
  def __init__(self):
    self.lines = []

  def text(self, line):
    self.lines.append(line)

  def working(self, text):
    pass


def _context(tmp_path, params=None):
  state = TrainState(np.int32(7), np.int32(0), params or {}, {}, {}, {})
  return Context(7, state, {}, _Texts(), epath.Path(tmp_path))


@pytest.mark.parametrize('suffix', ['.webp', '.png', '.gif'])
def test_animations_hold_every_frame(tmp_path, suffix):
  frames = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)
  path = epath.Path(tmp_path) / 'samples' / f'a{suffix}'
  animation.write(path, frames, frames_per_second=10)
  with Image.open(path) as file:
    assert file.n_frames == 5
    file.seek(3)
    assert suffix == '.gif' or (np.asarray(file.convert('RGB')) == frames[3]).all()
  with pytest.raises(ValueError, match=r'an animation is a \.webp, \.png, \.gif or \.mp4 file'):
    animation.write(path.with_suffix('.jpg'), frames, frames_per_second=10)


def test_the_walk_evaluator_draws_each_frame_from_the_averaged_parameters(tmp_path):
  context = _context(tmp_path, {'generator': {'gain': jnp.float32(0.5)}})
  evaluator = walks.walk(
    lambda params, z: jnp.broadcast_to(params['generator']['gain'] * z[:, None, None], (len(z), 2, 2, 3)),
    lambda key: jnp.stack([jnp.full(3, -1.0), jnp.full(3, 1.0)]),
    every=5,
    columns=2,
  )
  assert evaluator.run(context) == {}
  with Image.open(tmp_path / 'samples' / 'walk_00000007.webp') as file:
    assert file.n_frames == 2 and file.size == (4, 2)
    assert file.convert('RGB').getpixel((0, 0)) == (64, 64, 64)
    file.seek(1)
    assert file.convert('RGB').getpixel((3, 1)) == (191, 191, 191)


def test_collapse_is_announced_and_modes_are_counted(tmp_path):
  mesh = sharding.make_mesh()
  data = np.random.default_rng(0).uniform(-1, 1, (64, 4, 4, 1)).astype(np.float32)

  def generate(spread):
    def draw(params, frozen, cond, *, seed, num):
      yield jnp.asarray(spread * data[:32]), 32
      yield jnp.asarray(spread * data[32:]), num - 32

    return draw

  def watch(spread):
    context = _context(tmp_path)
    evaluator = mode_evaluators.collapse(generate(spread), mesh=mesh, cond={}, images=data, num=60, every=1)
    return evaluator.run(context), context.writer.lines

  values, lines = watch(1.0)
  assert abs(values['diversity'] - 1) < 0.05 and values['collapsed'] == 0 and not lines
  values, lines = watch(0.1)
  assert values['collapsed'] == 1 and 'collapsed at step 7' in lines[0]
  evaluator = mode_evaluators.modes(
    generate(1.0),
    lambda context, images: np.where(images[:, 0, 0, 0] > 0, 1, -1),
    mesh=mesh,
    num_modes=2,
    cond={},
    num=60,
    every=1,
  )
  share = (data[:60, 0, 0, 0] > 0).mean()
  values = evaluator.run(_context(tmp_path))
  assert values['modes'] == 1 and abs(values['modes_quality'] - share) < 1e-6
