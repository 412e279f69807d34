"""Evaluators: images and FID do not depend on batches or devices; what is missing is said before training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import distributed, sharding
from jaxgen.evaluators import fid as fid_module
from jaxgen.evaluators import kept_statistics
from jaxgen.evaluators.base import Context
from jaxgen.evaluators.fid import fid, fid_name
from jaxgen.evaluators.generate import make_generate, to_host
from jaxgen.evaluators.held_out_loss import held_out_loss
from jaxgen.evaluators.likelihood import likelihood
from jaxgen.evaluators.samples import samples
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.statistics import FeatureStatistics
from jaxgen.objectives.base import Denoising
from jaxgen.pretrained import inception
from jaxgen.processes.process import Prediction
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers.sampler import Sampler
from jaxgen.train import train
from jaxgen.train_state import TrainState
from jaxgen.writer import Writer, silent
from tests import toys

PARAMS = {'net': {'scale': jnp.float32(0.7)}}
LABELS = {'label': np.arange(21, dtype=np.int32) % 5}


def _sample(params, frozen, cond, keys):
  noise = jax.vmap(lambda key: jax.random.normal(key, (2, 4, 1)))(keys)
  return jnp.tanh(params['net']['scale'] * noise + cond['label'].reshape(-1, 1, 1, 1) / 5)


def _features(images) -> np.ndarray:
  """Stands for Inception, whose own tests are elsewhere: three numbers of each image."""
  flat = np.asarray(images, np.float32).reshape(len(images), -1)
  return np.stack([flat.mean(1), flat.std(1), flat[:, 0]], axis=1)


def _images(mesh, batch_size: int) -> np.ndarray:
  generate = make_generate(_sample, mesh=mesh, batch_size=batch_size)
  batches = generate(PARAMS, {}, LABELS, seed=3, num=21)
  return np.concatenate([np.asarray(images)[:count] for images, count in batches])


def test_an_image_depends_on_its_number_alone():
  one = sharding.make_mesh(data=1, devices=jax.devices()[:1])
  expected = _images(one, 21)
  assert expected.shape == (21, 2, 4, 1)
  assert len({image.tobytes() for image in expected}) == 21
  for mesh, batch_size in ((one, 1), (one, 8), (sharding.make_mesh(), 8), (sharding.make_mesh(data=2, fsdp=4), 16)):
    np.testing.assert_allclose(_images(mesh, batch_size), expected, atol=1e-6)


def test_images_become_bytes_as_files_hold_them():
  mesh = sharding.make_mesh()
  values = np.array([-1.0, -0.999, 0.0, 0.5, 1.0, 1.5, -3.0, 0.004], np.float32).reshape(8, 1, 1, 1)
  assert to_host(jnp.asarray(values), mesh).ravel().tolist() == [0, 0, 128, 191, 255, 255, 0, 128]


@pytest.mark.parametrize(('num', 'name'), [(50_000, 'fid'), (60_000, 'fid'), (2000, 'fid_2k'), (256, 'fid_256')])
def test_a_fid_of_fewer_samples_is_named_so(num, name):
  assert fid_name(num) == name


def test_a_reference_that_cannot_be_split_over_the_mesh_is_refused_before_training():
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match='batch_size 12 does not divide over 8 devices'):
    fid(lambda: None, toys.dataset(), mesh=mesh, cond={}, num_samples=9, every=1, batch_size=12, protocol={})
  with pytest.raises(ValueError, match='batch_size is -8; it must be 1 or more'):
    make_generate(_sample, mesh=mesh, batch_size=-8)


@pytest.fixture
def cheap_network(monkeypatch, tmp_path):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  monkeypatch.setattr(inception, 'load', lambda: inception.Inception(params={}, hash='cheap'))
  monkeypatch.setattr(fid_module, 'feature_extractor', lambda params, **_: _features)


def _context(tmp_path, writer) -> Context:
  state = TrainState(jnp.int32(5), jnp.int32(0), {'net': {'scale': jnp.float32(9)}}, {}, PARAMS, {})
  return Context(5, state, {}, writer, tmp_path)


def _fid(dataset, batch_size: int = 8, seed: int = 3):
  mesh = sharding.make_mesh()
  generate = make_generate(_sample, mesh=mesh, batch_size=batch_size)
  options = {'num_samples': 21, 'every': 1, 'batch_size': batch_size, 'protocol': {'guidance': 2.0}, 'seed': seed}
  return fid(generate, dataset, mesh=mesh, cond=LABELS, **options)


@pytest.mark.parametrize('batch_size', [8, 16])
def test_fid_in_the_loop_is_the_distance_of_all_images(batch_size, cheap_network, tmp_path):
  mesh, dataset = sharding.make_mesh(), toys.dataset(30)
  evaluator = _fid(dataset, batch_size)
  ours, theirs = FeatureStatistics(), FeatureStatistics()
  # The averaged parameters are sampled, not the raw ones.
  ours.update(_features(np.repeat(_images(mesh, 8), 3, axis=-1)))
  theirs.update(_features(np.repeat(np.stack([dataset.read(i)['image'] for i in range(30)]), 3, axis=-1)))
  expected = frechet_distance(ours.finalize(), theirs.finalize())
  with Writer(tmp_path / 'run') as writer:
    values = evaluator.run(_context(tmp_path, writer))
    assert list(values) == ['fid_21']
    np.testing.assert_allclose(values['fid_21'], expected, rtol=1e-5)
    assert evaluator.run(_context(tmp_path, writer)) == values
  how = json.loads((tmp_path / 'run' / 'protocols.json').read_text())['fid_21']
  assert how['samples'] == 21
  assert how['seed'] == 3
  assert how['guidance'] == 2.0
  assert how['network_hash'] == 'cheap'
  assert how['reference_fingerprint'] == 'toy'


def test_a_record_that_cannot_be_read_is_not_counted_as_reference(cheap_network, tmp_path):
  dataset = toys.dataset(30)

  def decode(image):
    if image is dataset.source[4]:
      raise ValueError('damaged')
    return dataset.decode(image)

  with Writer(tmp_path / 'run') as writer:
    _fid(dataset._replace(decode=decode)).run(_context(tmp_path, writer))
  how = json.loads((tmp_path / 'run' / 'protocols.json').read_text())['fid_21']
  assert how['reference'] == '29 images of toy (train)'


def test_reference_statistics_are_made_once_and_by_all_processes_or_none(cheap_network, tmp_path, monkeypatch):
  made = []

  def counted(images):
    made.append(len(images))
    return _features(images)

  monkeypatch.setattr(fid_module, 'feature_extractor', lambda params, **_: counted)
  with Writer(tmp_path / 'run') as writer:
    values = _fid(toys.dataset(30)).run(_context(tmp_path, writer))
    assert made == 4 * [8] + 3 * [8]  # the reference, then the samples
    made.clear()
    assert _fid(toys.dataset(30)).run(_context(tmp_path, writer)) == values
    assert made == 3 * [8]
    # The first process has no file: this one computes with it, though it has one, or the first would wait for ever.
    made.clear()
    monkeypatch.setattr(distributed, 'agree', lambda value: 0)
    monkeypatch.setattr(distributed, 'is_first', lambda: False)
    assert _fid(toys.dataset(30)).run(_context(tmp_path, writer)) == {}
    assert made == 4 * [8] + 3 * [8]


def test_a_killed_fid_continues_where_it_was_and_ends_at_the_same_bits(cheap_network, tmp_path, monkeypatch):
  monkeypatch.setattr(kept_statistics, '_EVERY', 0.0)
  made, lives = [], iter((3, 3, 99))  # batches that each life gets through

  def extract_or_die(images, until):
    if len(made) == until:
      raise KeyboardInterrupt
    made.append(len(images))
    return _features(images)

  def live(seed: int = 3, scale: float = 9.0):
    until = next(lives, 99)
    monkeypatch.setattr(fid_module, 'feature_extractor', lambda params, **_: lambda x: extract_or_die(x, until))
    made.clear()
    context = _context(tmp_path, silent())
    state = context.state.replace(ema=jax.tree.map(lambda x: x * scale / 9, context.state.ema))
    return _fid(toys.dataset(30), seed=seed).run(context._replace(state=state))

  for reference, samples_of in ((3, 0), (1, 2)):  # of 4 batches of the reference, and 3 of samples
    with pytest.raises(KeyboardInterrupt):
      live()
    assert len(made) == reference + samples_of
  values = live()
  assert len(made) == 1  # the last batch of samples
  assert not list(tmp_path.rglob('*.partial.npz'))
  assert live() == values
  assert len(made) == 3

  lives = iter((2,))
  with pytest.raises(KeyboardInterrupt):
    live()
  assert [path.name for path in tmp_path.rglob('*.partial.npz')] == ['fid_21.partial.npz']
  assert live(scale=8.0) != values  # of another step, which never takes what was kept
  assert len(made) == 3

  lives = iter((2,))
  with pytest.raises(KeyboardInterrupt):
    live()
  kept = next(tmp_path.rglob('*.partial.npz'))
  kept.write_bytes(kept.read_bytes()[:100])  # damaged
  assert live() == values
  assert len(made) == 3


def test_samples_are_drawn_from_the_same_noise_each_time(tmp_path):
  mesh = sharding.make_mesh()
  evaluator = samples(
    make_generate(_sample, mesh=mesh, batch_size=8), mesh=mesh, cond=LABELS, num=21, every=1, name='grid'
  )
  with Writer(tmp_path) as writer:
    evaluator.run(_context(tmp_path, writer))
    evaluator.run(_context(tmp_path, writer)._replace(step=6))
  first, second = (tmp_path / 'samples' / f'grid_{step:08d}.png' for step in (5, 6))
  assert first.read_bytes() == second.read_bytes()


def test_missing_weights_are_said_before_training(monkeypatch, tmp_path):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'empty'))
  mesh = sharding.make_mesh(data=2, fsdp=4)
  evaluator = fid(
    make_generate(_sample, mesh=mesh, batch_size=8),
    toys.dataset(),
    mesh=mesh,
    cond=LABELS,
    num_samples=21,
    every=1,
    batch_size=8,
    protocol={},
  )
  with pytest.raises(FileNotFoundError, match='jaxgen weights get inception'):
    train(toys.experiment(evaluators=(evaluator,)), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()
  with pytest.raises(ValueError, match=r'FID of 1 samples is not defined; set fid\.num_samples'):
    fid(lambda: None, toys.dataset(), mesh=mesh, cond={}, num_samples=1, every=1, batch_size=8, protocol={})


@pytest.mark.parametrize(('num', 'batch_size'), [(None, 8), (None, 16), (11, 8)])
def test_a_likelihood_is_the_mean_over_the_images_asked_for(num, batch_size, tmp_path):
  mesh, dataset = sharding.make_mesh(), toys.dataset(30)

  def measure(params, frozen, images, cond, keys):
    noise = jax.vmap(jax.random.uniform)(keys)
    return {'bits': params['net']['scale'] * images.mean((1, 2, 3)) + noise, 'ones': jnp.ones(len(images))}

  evaluator = likelihood(measure, dataset, mesh=mesh, every=5, batch_size=batch_size, num=num, seed=3)
  got = evaluator.run(_context(tmp_path, silent()))
  images = np.stack([dataset.decode(dataset.source[i])['image'] for i in range(num or 30)])
  noise = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(3), i))) for i in range(num or 30)]
  want = np.mean(0.7 * images.mean((1, 2, 3)) + noise)  # 0.7 is the average's, not the parameters'
  assert got['ones'] == 1
  np.testing.assert_allclose(got['bits'], want, rtol=1e-5)


@pytest.mark.parametrize('batch_size', [8, 16])
def test_held_out_loss_is_that_of_fixed_noise_at_each_time(batch_size, tmp_path):
  dataset, mesh = toys.dataset(20), sharding.make_mesh()
  images = np.stack([dataset.read(i)['image'] for i in range(20)])

  def denoising(predict):
    return Denoising(
      process=lambda params: rectified_flow(),
      denoiser=lambda params, frozen: lambda x, t, cond: predict(x, t.reshape(-1, 1, 1, 1)),
      condition=lambda params, frozen, cond, keys: (cond, lambda names: cond),
      sampler=Sampler(lambda *_, **__: None, np.zeros(2)),
      shape=images.shape[1:],
      limit=1.0,
    )

  def losses(predict):
    options = {'mesh': mesh, 'every': 1, 'batch_size': batch_size, 'times': (0.25, 0.5), 'seed': 3}
    return held_out_loss(denoising(predict), dataset, **options).run(_context(tmp_path, silent()))

  # A denoiser that says x0 = 0: what is left of v is alpha eps_hat - (alpha eps - sigma x0), eps_hat = x_t / sigma.
  got = losses(lambda x, t: Prediction(jnp.zeros_like(x), x / t, None))
  keys = [jax.random.fold_in(jax.random.key(3), i) for i in range(20)]
  eps = np.stack([np.asarray(jax.random.normal(key, images.shape[1:])) for key in keys])
  for t in (0.25, 0.5):
    error = (1 - t) * ((1 - t) * images + t * eps) / t - ((1 - t) * eps - t * images)
    wanted = np.mean(error**2) / ((1 - t) ** 2 + t**2)
    assert got[f'held_out/loss_t{t:.2f}'] == pytest.approx(wanted, rel=1e-4)
  with pytest.raises(ValueError, match='wanted some between 0 and 1'):
    held_out_loss(denoising(lambda x, t: None), dataset, mesh=mesh, every=1, batch_size=8, times=(1.0,))
