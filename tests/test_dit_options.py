"""DiT's options: what each adds to the parameters, and the property it is named after."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import perturbed

from jaxgen.models import dit

_WIDTH, _HEADS, _DEPTH = 32, 2, 2
_small = functools.partial(dit.DiT, patch=2, depth=_DEPTH, width=_WIDTH, heads=_HEADS, num_classes=5)
_draw = np.random.default_rng(0).standard_normal
_x = jnp.asarray(_draw((2, 8, 8, 3), np.float32))
_t = jnp.array([3.0, 700.0])
_cond = {'label': jnp.array([1, 5]), 'interval': jnp.array([0.0, 300.0])}


def _shapes(net):
  return jax.eval_shape(lambda key: net.init(key, _x, _t, _cond)['params'], jax.random.key(0))


def _count(net):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_shapes(net)))


def _params(net, scale=0.1):
  return perturbed(jax.jit(lambda key: net.init(key, _x, _t, _cond)['params'])(jax.random.key(0)), scale)


def _forward(net, params, x=_x, t=_t, cond=_cond):
  return jax.jit(lambda params, x, t, cond: net.apply({'params': params}, x, t, cond))(params, x, t, cond)


@pytest.mark.parametrize(
  ('fields', 'added'),
  [
    ({'interval': True}, 256 * _WIDTH + _WIDTH + _WIDTH**2 + _WIDTH),
  ],
)
def test_parameters_that_an_option_adds(fields, added):
  assert _count(_small(**fields)) - _count(_small()) == added


def test_interval_has_an_embedding_of_its_own():
  """Without the interval's part the network is the default one: the two embeddings are summed."""
  net = _small(interval=True)
  params = _params(net)
  silent = params | {'interval_embed': jax.tree.map(jnp.zeros_like, params['interval_embed'])}
  plain = {name: part for name, part in params.items() if name != 'interval_embed'}
  np.testing.assert_array_equal(_forward(net, silent), _forward(_small(), plain))
  assert np.abs(_forward(net, params) - _forward(net, silent)).max() > 1e-3


def test_interval_is_needed_when_on():
  with pytest.raises(KeyError, match='interval'):
    _small(interval=True).init(jax.random.key(0), _x, _t, {'label': _cond['label']})


def test_forward_mode_is_the_slope_in_time_and_interval():
  """MeanFlow's derivative: along (x, t, interval) at once."""
  net = _small(interval=True)
  params = _params(net)
  tangents = (0.1 * jnp.ones_like(_x), jnp.ones_like(_t), jnp.ones_like(_t))

  def at(x, t, interval):
    return net.apply({'params': params}, x, t, _cond | {'interval': interval})

  primals = (_x, _t, _cond['interval'])
  _, slope = jax.jit(functools.partial(jax.jvp, at))(primals, tangents)
  step = 1e-2
  ahead, behind = (jax.jit(at)(*(p + s * d for p, d in zip(primals, tangents, strict=True))) for s in (step, -step))
  np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=0.02, atol=5e-3)
