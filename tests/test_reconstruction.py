"""Evaluators of autoencoders: what they say of known images, and the folder they leave."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import sharding
from jaxgen.data.dataset import Dataset
from jaxgen.evaluators import reconstruction
from jaxgen.evaluators.base import Context
from jaxgen.metrics.reconstruction import psnr, ssim
from jaxgen.models import latents
from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.models.vq import VQModel
from jaxgen.pretrained import autoencoder
from jaxgen.train_state import TrainState

NUM = 11
_shared = {'multipliers': (1,), 'latent': 2, 'width': 4, 'groups': 2, 'blocks': 0, 'middle_attention': False}


class _Pictures:
  """Stands for the run's writer."""

  def __init__(self):
    self.seen: dict[str, Any] = {}

  def images(self, step, name, images, *, rows=None):
    self.seen[name] = (step, images, rows)

  def working(self, text):
    pass


class Case(NamedTuple):
  net: Any
  kind: reconstruction.Latents
  params: Any
  state: TrainState
  images: np.ndarray
  dataset: Dataset
  mesh: Any


@pytest.fixture(params=['gaussian', 'codes'], scope='module')
def case(request) -> Case:
  gaussian = request.param == 'gaussian'
  net = AutoencoderKL(**_shared) if gaussian else VQModel(**_shared, codes=5, width_of_code=2)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), shapes)
  trained, extra = params, {}
  if not gaussian:  # the codebook is a moving average, outside of what gradients train
    trained = {name: tree for name, tree in params.items() if name != 'codebook'}
    extra = {'codebook': {'vectors': params['codebook'], 'counts': np.ones(5), 'sums': params['codebook']}}
  state = TrainState(step=0, bad_steps=0, params={'autoencoder': trained}, opt_state={}, ema={}, extra=extra)
  images = rng.uniform(-1, 1, (NUM, 12, 12, 3)).astype(np.float32)
  dataset = Dataset('noise', 'test', list(images), lambda image: {'image': image}, 'noise')
  kind = reconstruction.GAUSSIAN if gaussian else reconstruction.CODES
  return Case(net, kind, params, state, images, dataset, sharding.make_mesh())


@pytest.fixture(scope='module')
def direct(case):
  """What comes back of all images at once, and what there is to know of their latents."""

  def run(params, x):
    mean, std = case.net.apply({'params': params}, x, method='posterior')
    return jnp.clip(case.net.apply({'params': params}, mean, method='restore'), -1, 1), mean, std

  return jax.jit(run)(case.params, jnp.asarray(case.images))


def _context(case, folder=None):
  return Context(7, case.state, {}, _Pictures(), folder)


def test_numbers_are_means_over_the_images(case, direct):
  x_hat, mean, std = direct
  context = _context(case)
  evaluator = reconstruction.reconstruction(
    case.net, case.dataset, case.kind, mesh=case.mesh, every=1, batch_size=8, num=100, shown=6, columns=3
  )
  found = evaluator.run(context)
  np.testing.assert_allclose(found['psnr'], np.mean(psnr(jnp.asarray(case.images), x_hat)), rtol=1e-5)
  np.testing.assert_allclose(found['ssim'], np.mean(ssim(jnp.asarray(case.images), x_hat)), rtol=1e-4)
  if case.kind is reconstruction.GAUSSIAN:
    mean, variance = np.float64(mean), np.float64(std) ** 2
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(axis=(1, 2)).mean(axis=0)
    np.testing.assert_allclose([found['kl/channel_0'], found['kl/channel_1']], kl, rtol=1e-4)
    np.testing.assert_allclose(found['kl'], kl.sum(), rtol=1e-4)
  else:
    far = np.square(np.asarray(mean)[..., None, :] - case.params['codebook']).sum(-1)
    share = np.bincount(far.argmin(-1).ravel(), minlength=5) / far[..., 0].size
    np.testing.assert_allclose(found['codes_used'], np.mean(share > 0))
    np.testing.assert_allclose(
      np.log(found['perplexity']), -np.sum(share[share > 0] * np.log(share[share > 0])), rtol=1e-5
    )
  step, picture, rows = context.writer.seen['reconstruction']
  assert (step, rows) == (7, ('image', 'restored') * 2)
  as_bytes = lambda images: np.round((np.asarray(images) + 1) * 127.5)  # noqa: E731
  np.testing.assert_allclose(picture[6:9], as_bytes(case.images[3:6]), atol=1)
  np.testing.assert_allclose(picture[9:12], as_bytes(x_hat[3:6]), atol=1)


def test_the_folder_that_is_kept_makes_latents_of_mean_0_and_variance_1(case, direct, tmp_path):
  keep = reconstruction.keep(case.net, case.dataset, mesh=case.mesh, every=1, batch_size=8, num=NUM)
  keep.check()
  assert keep.run(_context(case, tmp_path)) == {}
  loaded = autoencoder.load(tmp_path / 'autoencoder')
  assert loaded.net == case.net
  jax.tree.map(np.testing.assert_array_equal, loaded.params, case.params)
  _, mean, std = direct
  zeros = jnp.zeros_like(std)
  keys = jax.random.split(jax.random.key(0), NUM)
  scaled = np.asarray(latents.sample_posterior(loaded.frozen, mean, zeros, keys), np.float64)
  spread = (np.asarray(std, np.float64) * loaded.scaling.scale) ** 2
  if case.kind is reconstruction.CODES:  # diffusers' VQModel has one scale for all channels, but jaxgen keeps each
    assert (np.asarray(std) == 0).all()
  np.testing.assert_allclose(scaled.mean(axis=(0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose((scaled**2 + spread).mean(axis=(0, 1, 2)), 1, rtol=1e-4)


def test_restored_images_are_for_fid(case, direct):
  generate = reconstruction.restored(case.net, case.dataset, mesh=case.mesh, batch_size=8)
  params = {'autoencoder': case.params}
  batches = list(generate(params, {}, {}, seed=0, num=NUM))
  assert [count for _, count in batches] == [8, 3]
  images = np.concatenate([np.asarray(images)[:count] for images, count in batches])
  np.testing.assert_allclose(images, direct[0], atol=1e-5)
  for first in (3, 8, 10):  # of a measurement that was killed
    rest = [np.asarray(images)[:count] for images, count in generate(params, {}, {}, seed=0, num=NUM, first=first)]
    np.testing.assert_allclose(np.concatenate(rest), direct[0][first:], atol=1e-5)
  with pytest.raises(ValueError, match='has 11 images; 12 cannot be reconstructed'):
    next(generate(params, {}, {}, seed=0, num=12))


def test_one_scale_for_all_channels():
  total, squares, count = np.float64([10, 30]), np.float64([30, 110]), np.float64([10, 10])
  scaling = reconstruction.scaling_of(total, squares, count, by_channel=False)
  np.testing.assert_allclose(scaling.shift, [2, 2])
  np.testing.assert_allclose(scaling.scale, 1 / np.sqrt(7 - 4), rtol=1e-6)


def test_what_diffusers_cannot_hold_is_said_before_training(case):
  net = VQModel(**_shared, codes=5, cosine=True)
  keep = reconstruction.keep(net, case.dataset, mesh=case.mesh, every=1, batch_size=8, num=NUM)
  with pytest.raises(ValueError, match='cosine codes or FSQ'):
    keep.check()
