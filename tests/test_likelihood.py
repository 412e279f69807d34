"""Likelihoods of data whose density is known: the exact one, and the bound above it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.generation import likelihood
from jaxgen.objectives.diffusion import vlb
from jaxgen.processes import posterior
from jaxgen.processes.edm import edm
from jaxgen.processes.process import Prediction
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from tests.analytic import PROCESSES, compiled, gaussian, mixture

MEAN, STD, SHAPE = 0.2, 0.3, (8, 4, 4, 1)
CONTINUOUS = {name: PROCESSES[name] for name in ('vp_linear', 'vp_cosine', 'rectified_flow')} | {'edm': edm()}


def _keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def _normal(n, seed=0):
  return (MEAN + STD * np.random.default_rng(seed).standard_normal((n, *SHAPE[1:]))).astype(np.float32)


@pytest.mark.parametrize('name', CONTINUOUS)
def test_the_density_of_a_gaussian_is_found(name):
  process, x0 = CONTINUOUS[name], _normal(8)
  run = partial(likelihood.log_likelihood, gaussian(process, MEAN, STD**2), process, times=grids.uniform(128))
  got = compiled(lambda x0, keys: run(x0, cond={}, keys=keys), x0, _keys(8))
  want = stats.norm.logpdf(x0, MEAN, STD).sum(axis=(1, 2, 3))
  np.testing.assert_allclose(got, want, atol=0.05)  # nats, of 16 dimensions


def test_the_density_of_a_mixture_is_found_and_the_error_falls_with_the_square_of_the_steps():
  process, means, std = PROCESSES['rectified_flow'], (-0.6, 0.1, 0.7), 0.2
  x0 = np.random.default_rng(1).choice(means, SHAPE).astype(np.float32) + std * _normal(8, 2) / 2
  want = np.log(np.mean([stats.norm.pdf(x0, mean, std) for mean in means], axis=0)).sum(axis=(1, 2, 3))
  errors = []
  for steps in (16, 64):
    run = partial(likelihood.log_likelihood, mixture(process, means, std**2), process, times=grids.uniform(steps))
    got = compiled(lambda x0, keys, run=run: run(x0, cond={}, keys=keys), x0, _keys(8))
    errors.append(np.abs(got - want).max())
  assert errors[1] < 0.02
  assert errors[0] / errors[1] > 10  # 16 for order 2


def test_more_probes_lower_the_variance_and_keep_the_mean():
  """Of a rotation and a scaling of pixel pairs, whose derivative is not diagonal."""
  process = PROCESSES['rectified_flow']
  turn = np.linalg.qr(np.random.default_rng(3).standard_normal((16, 16)))[0].astype(np.float32)
  variances = np.linspace(0.05, 1.0, 16, dtype=np.float32)
  covariance = turn @ np.diag(variances) @ turn.T

  def denoise(x_t, t, cond):
    a, s = process.alpha(t)[:, None], process.sigma(t)[:, None]
    z = x_t.reshape(len(x_t), -1) @ turn / (a * a * variances[None] + s * s)
    back = lambda z: (z @ turn.T).reshape(x_t.shape)  # noqa: E731
    return Prediction(x0=back(a * variances[None] * z), eps=back(s * z))

  x0 = np.tile(np.random.default_rng(4).multivariate_normal(np.zeros(16), covariance).astype(np.float32), (64, 1))
  want = stats.multivariate_normal.logpdf(x0[0].astype(np.float64), np.zeros(16), covariance.astype(np.float64))
  x0 = x0.reshape(64, 4, 4, 1)
  found = {}
  for probes in (1, 16):
    run = partial(likelihood.log_likelihood, denoise, process, times=grids.uniform(64), probes=probes)
    found[probes] = compiled(lambda x0, keys, run=run: run(x0, cond={}, keys=keys), x0, _keys(64))
  assert found[16].std() < 0.4 * found[1].std()
  np.testing.assert_allclose(found[16].mean(), want, atol=0.2)


@pytest.fixture(scope='module')
def pixels():
  """8-bit images of a Gaussian, and their true bits per dimension: the entropy over the bins."""
  pixel = np.arange(256)
  mass = np.diff(stats.norm.cdf(np.append(pixel, 256) / 127.5 - 1 - vlb.BIN / 2, MEAN, STD))
  mass /= mass.sum()
  images = np.random.default_rng(5).choice(pixel, (64, *SHAPE[1:]), p=mass)
  bits = -np.log2(mass)[images].mean(axis=(1, 2, 3))
  return (images / 127.5 - 1).astype(np.float32), bits


def test_bits_per_dimension_are_the_entropy(pixels):
  x0, bits = pixels
  process = vp_cosine()
  run = partial(likelihood.bits_per_dimension, gaussian(process, MEAN, STD**2), process, times=grids.uniform(128))
  got = compiled(lambda x0, keys: run(x0, cond={}, keys=keys), x0, _keys(64))
  np.testing.assert_allclose(got.mean(), bits.mean(), atol=0.01)


def test_the_bound_lies_just_above_the_entropy(pixels):
  x0, bits = pixels
  process = vp_cosine(1000)
  run = partial(vlb.bound, gaussian(process, MEAN, STD**2), process, variance=posterior.large)
  terms, prior, total = compiled(lambda x0, keys: (*(b := run(x0, cond={}, keys=keys)), b.total), x0, _keys(64))
  assert terms.shape == (64, 1000)
  np.testing.assert_allclose(terms.sum(1) + prior, total, rtol=1e-5)
  assert bits.mean() - 0.01 < total.mean() < bits.mean() + 0.1
  assert prior.max() < 1e-3
  worse = partial(vlb.bound, gaussian(process, 0.0, STD**2), process, variance=posterior.large)
  assert compiled(lambda x0, keys: worse(x0, cond={}, keys=keys).total, x0, _keys(64)).mean() > total.mean() + 0.1


def test_a_bound_wants_steps():
  with pytest.raises(ValueError, match='give the process a number of steps'):
    vlb.bound(gaussian(vp_cosine(), 0.0, 1.0), vp_cosine(), jnp.zeros((1, 2, 2, 1)), cond={}, keys=_keys(1))
