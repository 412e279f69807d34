"""PatchGAN: what each logit sees, at one and several scales."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.layers.batch_norm import BatchStatisticsNorm
from jaxgen.models.patchgan import MultiScalePatchGAN, PatchGAN

_x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32))


def _count(shapes):
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_published_size():
  images = jnp.zeros((1, 256, 256, 3))
  shapes = jax.eval_shape(PatchGAN().init, jax.random.key(0), images)
  assert jax.eval_shape(PatchGAN().apply, shapes, images).shape == (1, 30, 30, 1)
  # pix2pix's `basic` discriminator of 3 channels, whose instance norms have no parameters; two vectors for each norm
  # more, a bias for each normalised layer less, with batch norms
  bare = jax.eval_shape(PatchGAN(norm=None).init, jax.random.key(0), images)
  assert _count(bare) == 2_764_737
  assert _count(shapes) == 2_764_737 + 128 + 256 + 512


@pytest.mark.parametrize(('layers', 'receptive'), [(1, 16), (2, 34)])
def test_a_logit_sees_its_patch_of_its_image_alone(layers, receptive):
  net = PatchGAN(width=4, layers=layers, norm=None)
  x = jnp.zeros((2, 64, 64, 1))
  params = jax.jit(net.init)(jax.random.key(0), x)
  params = jax.tree.map(lambda p: jnp.abs(p) + 0.01, params)  # no path cancels another
  middle = jax.eval_shape(net.apply, params, x).shape[1] // 2
  seen = np.asarray(jax.jit(jax.grad(lambda x: net.apply(params, x)[0, middle, middle, 0]))(x)) != 0
  rows = seen[0, :, :, 0].any(axis=1)
  assert rows.sum() == receptive == seen[0, :, :, 0].any(axis=0).sum()
  assert not seen[1].any()


def test_the_norm_is_batch_normalisation_without_running_statistics():
  norm = BatchStatisticsNorm()
  params = norm.init(jax.random.key(0), _x)['params']
  params = {'scale': params['scale'], 'bias': jnp.array([0.5, -1.0, 2.0])}
  reference = nn.BatchNorm(use_running_average=False)
  statistics = {'mean': jnp.zeros(3), 'var': jnp.ones(3)}
  expected, _ = reference.apply({'params': params, 'batch_stats': statistics}, _x, mutable=['batch_stats'])
  np.testing.assert_allclose(norm.apply({'params': params}, _x), expected, atol=1e-5)


def test_the_normalised_discriminator_judges_a_batch():
  net = PatchGAN(width=4, layers=2)
  params, judge = jax.jit(net.init)(jax.random.key(0), _x), jax.jit(net.apply)
  assert np.abs(judge(params, _x)[:1] - judge(params, _x[:1])).max() > 1e-3


def test_scales_see_the_image_halved():
  net = MultiScalePatchGAN(scales=2, width=4, layers=2, norm=None)
  params = jax.jit(net.init)(jax.random.key(0), _x)
  fine, coarse = jax.jit(net.apply)(params, _x)
  single = jax.jit(PatchGAN(width=4, layers=2, norm=None).apply)
  np.testing.assert_allclose(fine, single({'params': params['params']['scale_0']}, _x), rtol=1e-6)
  # in the interior, the mean of a 3x3 square around every second pixel
  halved = np.zeros((2, 16, 16, 3), np.float32)
  padded = np.pad(_x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.nan)
  for i in range(16):
    for j in range(16):
      halved[:, i, j] = np.nanmean(padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], axis=(1, 2))
  np.testing.assert_allclose(
    coarse, single({'params': params['params']['scale_1']}, jnp.asarray(halved)), rtol=1e-4, atol=1e-6
  )


def test_images_too_small_are_refused():
  with pytest.raises(ValueError, match='8x8 are too small for 3 strided layers'):
    PatchGAN().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
