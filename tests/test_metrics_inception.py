"""The Inception network against the features of a public implementation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.metrics import inception
from jaxgen.pretrained import weights

GOLDEN = Path(__file__).parent / 'golden' / 'inception.npz'


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


@pytest.fixture(scope='module')
def network():
  weights.get('inception')
  return inception.load()


def in_range(pixels: np.ndarray) -> jax.Array:
  return jnp.asarray(pixels / np.float32(127.5) - 1)


def relative(got, wanted) -> float:
  return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize('name', ['emoji32', 'photo256'])
def test_tf1_resize_agrees(golden, name):
  resized = inception.tf1_bilinear(jnp.asarray(golden[f'{name}_uint8_nhwc'], jnp.float32))
  wanted = golden[f'{name}_resized_corner_nchw'].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(resized[:, :40, :40], wanted, atol=1e-3)


def test_features_agree(golden, network):
  for name in ('emoji32', 'photo256'):
    images = in_range(golden[f'{name}_uint8_nhwc'])
    got = np.asarray(jax.jit(inception.inception_features)(network.params, images))
    wanted = golden[f'{name}_features']
    assert relative(got, wanted) < 1e-4
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
