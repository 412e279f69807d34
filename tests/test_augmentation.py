"""What a discriminator sees: ADA's probability and pipeline, DiffAugment."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.objectives.gan import augmentation
from jaxgen.objectives.gan import augmentation_pipeline as pipeline
from jaxgen.objectives.gan.augmentation_pipeline import Pipeline

_x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32))
_warp = jax.jit(pipeline.warp)
NOTHING = Pipeline(*[0.0] * len(Pipeline._fields))


def _maps(*maps):
  return jnp.asarray(np.stack(maps).astype(np.float32))


def _rotation(angle):
  c, s = math.cos(angle), math.sin(angle)
  return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def test_maps_of_pixels_to_pixels():
  """The identity and a shift by whole pixels are exact; a flip and a quarter turn are where they should be."""
  shift = np.eye(3)
  shift[:2, 2] = (2, -1)  # from where a pixel comes: two columns to the right, a row up
  x = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)).astype(np.float32)
  y, place = np.mgrid[-1:1:16j, -1:1:16j]
  x[2:] = np.exp(-6 * ((place - 0.2) ** 2 + (y + 0.4) ** 2))[..., None]
  found = _warp(jnp.asarray(x), _maps(np.eye(3), shift, np.diag([-1.0, 1, 1]), _rotation(math.pi / 2)))
  mirrored = np.pad(x[1], ((1, 1), (2, 2), (0, 0)), mode='reflect')
  np.testing.assert_allclose(found[0], x[0], atol=1e-4)
  np.testing.assert_allclose(found[1], mirrored[0:16, 4:20], atol=1e-4)
  np.testing.assert_allclose(found[2], x[2][:, ::-1], atol=0.05)
  np.testing.assert_allclose(found[3], np.rot90(x[3]), atol=0.05)


def test_a_turn_and_its_inverse_give_back_a_smooth_image():
  y, x = np.mgrid[-1:1:16j, -1:1:16j]
  bump = np.exp(-4 * (x**2 + y**2))[None, ..., None].repeat(3, -1).repeat(4, 0).astype(np.float32)
  found = _warp(jnp.asarray(bump), _maps(*[_rotation(a) for a in (0.3, 1.0, 2.0, -2.5)]))
  np.testing.assert_allclose(
    found[:, 3:13, 3:13], bump[:, 3:13, 3:13], atol=0.03
  )  # round, so that turning changes nothing


@pytest.mark.slow
def test_colours():
  gray = jnp.ones(3) / math.sqrt(3)
  keys = jax.random.split(jax.random.key(0), 64)

  def maps(**strengths):
    chosen = NOTHING._replace(**strengths)
    return np.asarray(jax.vmap(lambda key: pipeline.colour(chosen, jnp.float32(1.0), key))(keys))

  np.testing.assert_allclose(maps(), np.eye(4)[None].repeat(64, 0), atol=1e-6)
  hue = maps(hue=1.0)[:, :3, :3]
  np.testing.assert_allclose(hue @ hue.transpose(0, 2, 1), np.eye(3)[None].repeat(64, 0), atol=1e-5)  # rotations
  np.testing.assert_allclose(hue @ gray, np.asarray(gray)[None].repeat(64, 0), atol=1e-5)  # that leave gray
  flips = np.asarray(maps(luma_flip=1.0)[:, :3, :3] @ gray @ gray)
  assert set(np.round(flips, 4).tolist()) == {-1.0, 1.0}
  saturation = maps(saturation=1.0)[:, :3, :3]
  np.testing.assert_allclose(saturation @ gray, np.asarray(gray)[None].repeat(64, 0), atol=1e-5)
  assert (np.linalg.det(saturation) > 0).all() and np.linalg.det(saturation).std() > 0.5
  brightness = maps(brightness=1.0)[:, :3, 3]
  np.testing.assert_allclose(brightness, brightness[:, :1].repeat(3, 1))
  assert 0.1 < brightness.std() < 0.3


def test_gray_images_become_the_mean_of_equal_channels():
  @jax.jit
  def recoloured(keys):
    colours = jax.vmap(lambda key: pipeline.colour(Pipeline(), jnp.float32(1.0), key))(keys)
    return [pipeline.recolour(x, colours) for x in (jnp.repeat(_x[..., :1], 3, axis=-1), _x[..., :1])]

  three, one = recoloured(jax.random.split(jax.random.key(1), 4))
  np.testing.assert_allclose(one[..., 0], three.mean(-1), atol=1e-5)


@pytest.fixture(scope='module')
def augment():
  chosen = Pipeline(noise=1.0, cutout=1.0)
  return jax.jit(lambda p, x, key: pipeline.augment(chosen, p, x, key))


def test_nothing_happens_with_probability_0_and_all_of_it_with_1(augment):
  np.testing.assert_allclose(augment(jnp.float32(0), _x, jax.random.key(0)), _x, atol=1e-4)
  certain = augment(jnp.float32(1), _x, jax.random.key(0))
  assert (np.abs(certain - _x).mean((1, 2, 3)) > 0.1).all()
  assert np.isfinite(certain).all()


@pytest.mark.slow
def test_each_transformation_happens_to_a_share_of_the_images():
  keys = jax.random.split(jax.random.key(2), 2000)
  for chosen, probability in ((NOTHING._replace(scale=0.5), 0.3), (NOTHING._replace(rotation=1.0), 0.6)):
    maps = jax.vmap(lambda key, c=chosen: pipeline.geometry(c, jnp.float32(0.6), key, (8, 8)))(keys)
    moved = (np.abs(np.asarray(maps) - np.eye(3)).max((1, 2)) > 1e-6).mean()
    assert abs(moved - probability) < 0.04


def test_images_of_other_channels_are_refused():
  with pytest.raises(ValueError, match='images of 2 channels have no colours'):
    pipeline.augment(Pipeline(), jnp.float32(0), jnp.zeros((1, 4, 4, 2)), jax.random.key(0))


def test_the_adaptive_probability_follows_the_signs():
  made = augmentation.adaptive(Pipeline(), target=0.5, interval=2, ramp=100.0, start=0.99)
  kept = made.init()
  real = jnp.ones(5)  # the discriminator knows them all: more augmentation, up to 1
  history = []
  for logits in (real, real, -real, real, -real, -real):
    kept = made.update(kept, jnp.int32(0), logits)
    history.append(float(kept['probability']))
  np.testing.assert_allclose(history, [0.99, 1.0, 1.0, 0.9, 0.9, 0.8], rtol=1e-5)
  assert made.metrics(kept, jnp.int32(0))['augmentation'] == kept['probability'] and kept['steps'] == 0


def test_diff_augment_shifts_cuts_and_recolours():
  image = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1, (16, 16, 3)).astype(np.float32))
  keys = jax.random.split(jax.random.key(0), 200)

  @jax.jit
  def augmented(keys):
    each = (augmentation.shift, augmentation.cut, augmentation.shift_colours)
    return [jax.vmap(lambda key, f=f: f(image, key))(keys) for f in each]

  shifted, cut, recoloured = map(np.asarray, augmented(keys))
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  places = {(i, j) for i in range(5) for j in range(5)}
  found = set()
  for one in shifted:
    found |= {(i, j) for i, j in places if (one == padded[i : i + 16, j : j + 16]).all()}
  assert found == places
  holes = (cut == 0).all(-1)
  assert holes.sum((1, 2)).max() == 64 and holes.sum((1, 2)).min() >= 16  # part may lie outside
  shift = recoloured.mean((1, 2, 3)) - np.asarray(image).mean()
  assert -0.5 <= shift.min() < -0.45 and 0.45 < shift.max() <= 0.5
  batch = jax.jit(augmentation.diff_augment().apply)({}, jnp.int32(0), _x, jax.random.key(0))
  assert batch.shape == _x.shape and (np.abs(batch - _x).mean((1, 2, 3)) > 0.05).all()


@pytest.mark.slow
def test_the_pipeline_is_differentiable_twice(augment):
  """As R1 needs it: the derivative along a direction of |grad|^2 is that of differences."""

  def penalty(scale):
    def judge(x):
      return jnp.sum(jnp.sin(augment(jnp.float32(1), x * scale, jax.random.key(3))))

    return jnp.sum(jax.grad(judge)(_x) ** 2)

  slope = jax.jit(jax.grad(penalty))(1.0)
  value = jax.jit(penalty)
  np.testing.assert_allclose(slope, (value(1.005) - value(0.995)) / 0.01, rtol=0.02)
