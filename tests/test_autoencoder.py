"""Autoencoders: published sizes, their objective, codebooks, tiles, and training on their latents."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_models import perturbed

from jaxgen import ema
from jaxgen.generation import edit
from jaxgen.models import latents, tiles, vq
from jaxgen.models.autoencoder import AutoencoderKL, Gaussian, autoencoder_kl
from jaxgen.models.patchgan import PatchGAN
from jaxgen.objectives.autoencoder import autoencoder as objectives
from jaxgen.objectives.autoencoder import quantize as bottleneck
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.latent import latent
from jaxgen.train_state import init_state, sampling_params
from jaxgen.train_step import make_train_step
from tests import tiny_diffusion

_small = functools.partial(AutoencoderKL, multipliers=(1, 2), latent=2, width=4, groups=2, blocks=1)
_small_vq = functools.partial(vq.VQModel, multipliers=(1, 2), latent=3, width=4, groups=2, blocks=1)
_x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)


def _params(net, images=_x):
  """Random parameters, none of them zero, without compiling an initialisation."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), images)['params']
  return perturbed(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes), scale=0.3)


@pytest.mark.parametrize(
  ('net', 'count'),
  [
    (autoencoder_kl('sd-f8'), 83_653_863),
    pytest.param(autoencoder_kl('sd3-f8'), 83_819_683, marks=pytest.mark.slow),
    (autoencoder_kl('kl-f4'), 55_312_063),
    (vq.vq_model('vq-f4'), 55_322_782),
    pytest.param(vq.vq_model('vq-f8'), 62_404_783, marks=pytest.mark.slow),
    (vq.vq_model('vqgan-f16-1024'), 72_141_699),
    pytest.param(vq.vq_model('vqgan-f16-16384'), 76_073_859, marks=pytest.mark.slow),
  ],
  ids=lambda value: f'{value:,}' if isinstance(value, int) else '',
)
def test_published_parameter_counts(net, count):
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(('make', 'message'), [(autoencoder_kl, 'sd-f8, sd3-f8'), (vq.vq_model, 'vq-f4')])
def test_unknown_name_is_answered_with_the_known_ones(make, message):
  with pytest.raises(ValueError, match=message):
    make('f7')


def test_what_does_not_divide_is_refused():
  with pytest.raises(ValueError, match='images of 7x8 do not divide by 2, the side of a latent'):
    jax.eval_shape(_small().init, jax.random.key(0), _x[:, :7])
  with pytest.raises(ValueError, match='level 0: 4 features do not divide into 3 groups'):
    jax.eval_shape(_small(groups=3).init, jax.random.key(0), _x)
  with pytest.raises(ValueError, match='set one of them'):
    jax.eval_shape(_small_vq(codes=4, levels=(2, 2, 2)).init, jax.random.key(0), _x)


class Plain(nn.Module):
  """A linear autoencoder with the parts that the objective needs."""

  latent: int = 2

  def setup(self):
    self.encoder = nn.Conv(2 * self.latent, (2, 2), strides=2, name='encoder')
    self.decoder = _Decoder(name='decoder')

  def encode(self, images):
    mean, log_variance = jnp.split(self.encoder(images), 2, axis=-1)
    return Gaussian(mean, log_variance)

  def decode(self, z):
    return self.decoder(z)

  def __call__(self, images):
    return self.decode(self.encode(images).mean)


class _Decoder(nn.Module):
  @nn.compact
  def __call__(self, z):
    return nn.Conv(3, (3, 3), name='conv_out')(jnp.repeat(jnp.repeat(z, 2, 1), 2, 2))


@pytest.fixture(scope='module')
def plain():
  net = Plain()
  return net, _params(net)


def test_the_gaussian_bottleneck_costs_its_kl_per_value_of_the_image(plain):
  net, params = plain
  made = net.apply({'params': params}, _x, method='encode')
  mean, variance = np.float64(made.mean), np.exp(np.float64(made.log_variance))
  kl = 0.5 * (mean**2 + variance - 1 - np.log(variance))  # b h w z
  key = jax.random.key(0)
  code = bottleneck.gaussian(0.5, side=4).encode(net, params, {}, _x, key)
  np.testing.assert_allclose(code.loss, 0.5 * kl.sum() / _x.size, rtol=1e-5)
  np.testing.assert_allclose(code.metrics['kl'], kl.sum() / len(_x), rtol=1e-5)
  each = kl.mean(axis=(0, 1, 2))
  free = bottleneck.gaussian(1.0, side=4, free_bits=float(each.mean())).encode(net, params, {}, _x, key)
  wanted = np.maximum(each, each.mean()).sum() * 16 / _x[0].size
  np.testing.assert_allclose(free.loss, wanted, rtol=1e-5)
  assert wanted > each.sum() * 16 / _x[0].size
  np.testing.assert_allclose(np.std((code.z - mean) / np.sqrt(variance)), 1, atol=0.15)


@pytest.fixture(scope='module')
def discriminator():
  net = PatchGAN(width=4, layers=1, norm=None)
  return net, _params(net)


class _State:
  def __init__(self, step):
    self.step, self.extra = jnp.int32(step), {}


def test_the_loss_and_its_gradient_are_those_of_the_equations(plain, discriminator):
  """Eqs. 1 to 3 written out: lambda from gradients of each term alone, to the decoder's last kernel."""
  net, params = plain
  judge, judge_params = discriminator
  through = bottleneck.gaussian(0.1, side=4)
  made = objectives.autoencoder(net, through, adversary=objectives.Adversary(judge, weight=0.7, start=5))
  trees, key = {'autoencoder': params, 'discriminator': judge_params}, jax.random.key(1)

  def terms(params):
    code = through.encode(net, params, {}, _x, key)
    x_hat = net.apply({'params': params}, code.z, method='decode')
    return jnp.mean(jnp.abs(_x - x_hat)), -jnp.mean(judge.apply({'params': judge_params}, x_hat)), code.loss

  def last(gradient):
    return np.linalg.norm(gradient['decoder']['conv_out']['kernel'])

  values = jax.jit(terms)(params)
  gradients = jax.jit(jax.jacrev(terms))(params)
  scale = last(gradients[0]) / (last(gradients[1]) + 1e-4)
  run = jax.jit(
    lambda params, step: jax.value_and_grad(
      lambda p: made.phases[0].loss(trees | {'autoencoder': p}, _State(step), {}, {'image': _x}, key), has_aux=True
    )(params)
  )
  for step, weight in ((4, 0.0), (5, 0.7 * scale)):
    (value, aux), gradient = run(params, step)
    np.testing.assert_allclose(value, values[0] + weight * values[1] + values[2], rtol=1e-5)
    np.testing.assert_allclose(aux.metrics['adversarial_weight'], weight, rtol=1e-4)
    wanted = jax.tree.map(lambda a, b, c, w=weight: a + w * b + c, *gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, wanted)


def test_the_discriminator_learns_by_the_hinge_once_it_starts(plain, discriminator):
  net, params = plain
  judge, judge_params = discriminator
  through = bottleneck.gaussian(0.0, side=4)
  made = objectives.autoencoder(net, through, adversary=objectives.Adversary(judge, start=5))
  trees, key = {'autoencoder': params, 'discriminator': judge_params}, jax.random.key(1)
  assert [phase.trains for phase in made.phases] == ['autoencoder', 'discriminator']

  @jax.jit
  def logits(params):
    x_hat = net.apply({'params': params}, through.encode(net, params, {}, _x, key).z, method='decode')
    return [judge.apply({'params': judge_params}, images) for images in (_x, x_hat)]

  real, fake = map(np.asarray, logits(params))
  loss = jax.jit(lambda step: made.phases[1].loss(trees, _State(step), {}, {'image': _x}, key)[0])
  wanted = 0.5 * (np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean())
  for step, expected in ((4, 0.0), (5, wanted)):
    np.testing.assert_allclose(loss(step), expected, rtol=1e-5)


@pytest.mark.parametrize('cosine', [False, True])
def test_codes_are_the_nearest(cosine):
  rng = np.random.default_rng(0)
  z, book = np.float32(rng.standard_normal((2, 3, 4, 5))), np.float32(rng.standard_normal((7, 5)))
  codes = jax.jit(lambda z: vq.nearest(z, book, cosine=cosine))(z)  # a codebook of NumPy, as weights are read
  unit = book / np.linalg.norm(book, axis=-1, keepdims=True) if cosine else book
  far = np.square(z[..., None, :] / (np.linalg.norm(z, axis=-1)[..., None, None] if cosine else 1) - unit).sum(-1)
  np.testing.assert_array_equal(codes.index, far.argmin(-1))
  np.testing.assert_allclose(codes.z, unit[far.argmin(-1)], rtol=1e-5)


def test_vqgans_released_loss_can_be_set():
  """`legacy`: |sg[z_q] - z|^2 + beta |z_q - sg[z]|^2, where the paper has beta before the other."""
  net, key = _small_vq(codes=16), jax.random.key(0)
  params = net.init(key, _x)['params']
  z = net.apply({'params': params}, _x, method='encode')
  apart = jnp.mean((z - vq.nearest(z, params['codebook']).z) ** 2)
  made = {
    'paper': bottleneck.codebook(),
    'legacy': bottleneck.codebook(commitment=1.0, learning=0.25),
  }
  for through in made.values():
    np.testing.assert_allclose(through.encode(net, params, {}, _x, key).loss, 1.25 * apart, rtol=1e-5)
  pull = {
    name: jax.grad(lambda book, t=through: t.encode(net, params | {'codebook': book}, {}, _x, key).loss)(
      params['codebook']
    )
    for name, through in made.items()
  }
  np.testing.assert_allclose(pull['legacy'], 0.25 * pull['paper'], rtol=1e-4, atol=1e-9)


def test_fsq_is_a_grid_with_every_code_and_passes_gradients_straight():
  levels = (4, 3)
  z = jnp.asarray(np.random.default_rng(0).uniform(-4, 4, (2, 16, 16, 2)), jnp.float32)
  codes = vq.fsq(z, levels)
  assert set(np.unique(codes.index)) == set(range(12))
  for channel, values in ((0, [-1, -0.5, 0, 0.5]), (1, [-1, 0, 1])):
    np.testing.assert_allclose(np.unique(np.round(codes.z[..., channel], 4)), values, atol=1e-4)
  index, vectors = np.asarray(codes.index).ravel(), np.asarray(codes.z).reshape(-1, 2).round(4) + 0
  by_index = {int(i): tuple(v.tolist()) for i, v in zip(index, vectors, strict=True)}
  assert len(set(by_index.values())) == 12
  gradient = jax.grad(lambda z: vq.fsq(z, levels).z.sum())(jnp.zeros((1, 1, 1, 2)))
  assert (gradient > 0).all()
  with pytest.raises(ValueError, match='FSQ has 2 levels and z 3 channels'):
    vq.fsq(jnp.zeros((1, 1, 1, 3)), levels)


def test_the_moving_codebook_is_the_papers_and_revives_dead_codes():
  rng = np.random.default_rng(0)
  z, index = np.float32(rng.standard_normal((6, 2))), np.array([0, 0, 1, 1, 1, 0])
  book = {
    'vectors': jnp.zeros((3, 2)),
    'counts': jnp.array([2.0, 1.0, 0.15]),
    'sums': jnp.asarray(rng.standard_normal((3, 2)), jnp.float32),
  }
  moved = bottleneck.move(
    book, jnp.asarray(z), jnp.asarray(index), jax.random.key(0), decay=0.6, revive=0.1, cosine=False
  )
  for code in (0, 1):
    counts = 0.6 * book['counts'][code] + 0.4 * 3
    sums = 0.6 * np.asarray(book['sums'])[code] + 0.4 * z[index == code].sum(0)
    np.testing.assert_allclose(moved['counts'][code], counts, rtol=1e-6)
    np.testing.assert_allclose(moved['vectors'][code], sums / counts, rtol=1e-5)
  assert (z == np.asarray(moved['vectors'][2])).all(axis=1).any()  # 0.15 fell below 0.1: now a vector of the batch
  assert moved['counts'][2] == 1


def _train(objective, net_names, steps, x):
  optimizers = {name: optax.adam(3e-3) for name in net_names}
  averages = {'autoencoder': ema.Average('autoencoder', ema.constant(0.5))}
  state = init_state(objective, optimizers, averages, {'image': x}, jax.random.key(0))
  step = jax.jit(make_train_step(objective, optimizers, averages))
  seen = []
  for i in range(steps):
    state, metrics = step(state, {}, {'image': x}, jax.random.key(i))
    seen.append({name: float(mean.total) for name, mean in metrics.items()})
  return state, seen


@pytest.mark.slow
@pytest.mark.parametrize(
  ('net', 'through'),
  [
    (_small_vq(codes=16), bottleneck.moving_codebook(decay=0.8)),
    (_small_vq(codes=16, cosine=True), bottleneck.codebook()),
    (_small_vq(codes=0, levels=(3, 3, 3)), bottleneck.codebook()),
  ],
  ids=['moving', 'cosine', 'fsq'],
)
def test_an_autoencoder_of_codes_learns(net, through):
  made = objectives.autoencoder(net, through, pixels=objectives.squared)
  state, seen = _train(made, ['autoencoder'], 40, _x)
  assert seen[-1]['pixels'] < 0.8 * seen[0]['pixels']
  assert seen[-1]['codes_used'] > 0.3
  params = bottleneck.whole(sampling_params(state))
  images = net.apply({'params': params}, _x)
  assert float(jnp.mean((images - _x) ** 2)) < 1.2 * seen[0]['pixels']
  with pytest.raises(ValueError, match='train a generator'):
    made.sample(sampling_params(state), {}, {}, jax.random.split(jax.random.key(0), 2))


def test_samples_of_a_vae_are_each_of_their_key(plain):
  net, params = plain
  made = objectives.autoencoder(net, bottleneck.gaussian(1.0, side=4))
  keys = jax.random.split(jax.random.key(0), 3)
  images = made.sample({'autoencoder': params}, {}, {}, keys)
  assert images.shape == (3, 8, 8, 3)
  np.testing.assert_allclose(
    made.sample({'autoencoder': params}, {}, {}, keys[1:2])[0], images[1], rtol=1e-5, atol=1e-6
  )


class Echo(nn.Module):
  """A network whose tiles are exactly parts of the whole."""

  factor: int = 2

  @nn.compact
  def posterior(self, images):
    mean = images.reshape(len(images), images.shape[1] // 2, 2, images.shape[2] // 2, 2, -1).mean((2, 4))
    return mean, jnp.abs(mean)

  def restore(self, z):
    return jnp.repeat(jnp.repeat(z, 2, 1), 2, 2)


@pytest.mark.parametrize('overlap', [0, 1, 3])
def test_tiles_make_the_whole(overlap):
  rng = np.random.default_rng(0)
  frozen = {'params': {}, 'shift': np.float32([0.5, 0, 1]), 'scale': np.float32([2, 1, 3])}
  z = jnp.asarray(rng.standard_normal((2, 7, 11, 3)), jnp.float32)
  whole = latents.decode(Echo(), frozen, z)
  np.testing.assert_allclose(
    tiles.decode_tiled(Echo(), frozen, z, tile=4, overlap=overlap), whole, rtol=1e-5, atol=1e-5
  )
  made = tiles.encode_tiled(Echo(), frozen, whole, tile=4, overlap=overlap)
  for part, wanted in zip(made, latents.posterior(Echo(), frozen, whole), strict=True):
    np.testing.assert_allclose(part, wanted, rtol=1e-5, atol=1e-5)


def test_tiles_that_overlap_altogether_are_refused():
  with pytest.raises(ValueError, match='tiles of 4 cannot overlap by 4; wanted 0 to 3'):
    tiles.decode_tiled(Echo(), {}, jnp.zeros((1, 8, 8, 3)), tile=4, overlap=4)


def _recording(seen):
  """An objective that keeps the batch it sees."""

  def loss(params, state, frozen, batch, key):
    seen.append(batch)
    return jnp.mean(batch['image']), Aux()

  def sample(params, frozen, cond, keys):
    return jnp.ones((len(keys), 2, 2, 3)) * params['net']

  return Objective(
    lambda key, frozen, batch: {'params': {'net': jnp.float32(0.25)}}, (Phase('net', 'net', loss),), sample
  )


def test_latents_are_drawn_scaled_and_decoded_in_one_place():
  seen: list = []
  inner, net = _recording(seen), Echo()
  made = latent(inner, net)
  frozen = {'autoencoder': {'params': {}, 'shift': np.float32([0.5, 0, -1]), 'scale': np.float32([2, 1, 4])}}
  mean = jnp.full((512, 2, 2, 3), 0.5)
  batch = {'image': mean, 'std': 0.1 * jnp.ones_like(mean), 'label': jnp.zeros(512, int)}
  made.phases[0].loss({}, None, frozen, batch, jax.random.key(0))
  made.phases[0].loss({}, None, frozen, batch, jax.random.key(1))
  made.phases[0].loss({}, None, frozen, {'image': mean}, jax.random.key(1))
  first, other, sampled = seen
  assert first.keys() == {'image', 'label'}
  np.testing.assert_allclose(first['image'].mean((0, 1, 2)), [0, 0.5, 6], atol=0.05)
  np.testing.assert_allclose(first['image'].std((0, 1, 2)), [0.2, 0.1, 0.4], rtol=0.1)
  assert np.abs(first['image'] - other['image']).max() > 0.1
  np.testing.assert_allclose(sampled['image'][0, 0, 0], [0, 0.5, 6], atol=1e-6)
  images = made.sample({'net': 0.25}, frozen, {}, jax.random.split(jax.random.key(0), 2))
  np.testing.assert_allclose(images[0, 0, 0], np.clip([0.25 / 2 + 0.5, 0.25, 0.25 / 4 - 1], -1, 1), rtol=1e-6)


def test_images_are_edited_as_latents():
  inner, net = tiny_diffusion.objective(), Echo()
  made = latent(inner, net)
  frozen = {'autoencoder': {'params': {}, 'shift': np.float32([0.5, 0, -1]), 'scale': np.float32([2, 1, 0.5])}}
  images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
  z = latents.scaled(frozen['autoencoder'], latents.posterior(net, frozen['autoencoder'], images)[0])
  params, label = {'net': {'level': jnp.float32([0.2, -0.1])}}, {'label': jnp.array([0, 1])}
  keys = jax.random.split(jax.random.key(0), 2)
  assert made.denoising is not None and inner.denoising is not None
  got = edit.edited(made.denoising, strength=0.5)(params, frozen, label, keys, image=images)
  on_latents = inner.denoising._replace(decode=lambda frozen, x0: x0)
  want = edit.edited(on_latents, strength=0.5)(params, {}, label, keys, image=z)
  assert got.shape == images.shape
  np.testing.assert_allclose(got, np.clip(latents.decode(net, frozen['autoencoder'], want), -1, 1), atol=1e-5)
