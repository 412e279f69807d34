"""The small text encoder: padding says nothing, words and their order do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.text_encoder import TextEncoder

NET = TextEncoder(vocabulary=10, width=16, depth=1, heads=2)
IDS = jnp.array([[3, 4, 5, 0], [7, 0, 0, 0], [0, 0, 0, 0]])
apply = jax.jit(NET.apply)


@pytest.fixture(scope='module')
def params():
  made = jax.jit(NET.init)(jax.random.key(0), IDS)['params']
  noise = np.random.default_rng(0).standard_normal
  return jax.tree.map(lambda leaf: leaf + 0.1 * noise(leaf.shape, np.float32), made)


def test_outputs_of_words_do_not_depend_on_padding(params):
  short = apply({'params': params}, IDS[:2, :3])
  long = apply({'params': params}, IDS[:2])
  np.testing.assert_allclose(long['pooled'], short['pooled'], atol=1e-6)
  np.testing.assert_allclose(long['text'][0, :3], short['text'][0], atol=1e-6)


def test_words_and_their_order_are_told(params):
  pooled = apply({'params': params}, jnp.array([[3, 4, 5, 0], [5, 4, 3, 0], [3, 4, 6, 0]]))['pooled']
  assert np.abs(pooled[0] - pooled[1]).max() > 1e-3 and np.abs(pooled[0] - pooled[2]).max() > 1e-3


def test_an_empty_text_is_one_token(params):
  made = apply({'params': params}, IDS)
  np.testing.assert_array_equal(made['text_mask'], (IDS != 0).at[:, 0].set(True))
  assert np.isfinite(made['pooled']).all() and np.abs(made['pooled'][2]).max() > 0.1
  assert np.isfinite(made['text']).all()
