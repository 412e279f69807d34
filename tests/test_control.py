"""Control branches of transformers, and the pictures that they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.adapters.controlnet import COPY_TRANSFORMER, control
from jaxgen.data.controls import canny, canny_edges, edge_f1, with_control
from jaxgen.init_from import InitFrom, merged
from jaxgen.models.control_transformer import ControlledTransformer, ControlTransformer, spread
from jaxgen.models.dit import DiT
from jaxgen.models.mmdit import MMDiT
from jaxgen.models.pixart import PixArt

SIZE = {'patch': 2, 'depth': 3, 'width': 8, 'heads': 2}
NETS = {'dit': DiT(**SIZE), 'mmdit': MMDiT(**SIZE), 'pixart': PixArt(**SIZE, pooled=True, own_modulation=True)}


def _inputs(rng):
  drawn = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  cond = {'text': drawn(2, 3, 5), 'pooled': drawn(2, 4)}
  return drawn(2, 4, 4, 3), jnp.full(2, 500.0), cond, cond | {'control': jnp.abs(drawn(2, 8, 8, 3))}


def _random(shapes, rng):
  return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize('kind', NETS)
def test_a_branch_starts_as_a_copy_that_says_nothing(kind):
  rng = np.random.default_rng(0)
  base, (x, t, cond, with_control) = NETS[kind], _inputs(rng)
  count = 2
  net = ControlledTransformer(base, (ControlTransformer(base, count),))
  shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, with_control)['params']
  of_base = jax.eval_shape(base.init, jax.random.key(0), x, t, cond)['params']
  assert set(shapes) == {*of_base, 'controls_0'}
  own = _random(of_base, rng)
  trained = control().init(jax.random.key(0), lambda key: {'net': net.init(key, x, t, with_control)['params']})
  branch = trained['control']['net']['controls_0']
  assert not any(np.any(leaf) for name, tree in branch.items() if name != 'net' for leaf in jax.tree.leaves(tree))
  assert not {'final', 'last_block'} & set(branch['net'])
  copied = merged(trained, {'net': own}, InitFrom('base', **COPY_TRANSFORMER))
  blocks = copied['control']['net']['controls_0']['net']['blocks']
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:count]), blocks, own['blocks'])

  @jax.jit
  def answers(own, branch, scale):
    params, _ = control().join({'control': {'net': {'controls_0': branch}}}, {'net': own})
    scaled = with_control | {'control_scale': scale}
    return base.apply({'params': own}, x, t, cond), net.apply(params | {'params': params['net']}, x, t, scaled)

  plain, first = answers(own, copied['control']['net']['controls_0'], jnp.ones(2))
  np.testing.assert_allclose(first, plain, rtol=0, atol=1e-6)
  loud = _random(shapes['controls_0'], rng)
  plain, half = answers(own, loud, jnp.array([1.0, 0.0]))
  assert np.abs(half[0] - plain[0]).max() > 1e-2
  np.testing.assert_allclose(half[1], plain[1], rtol=0, atol=1e-6)


def test_what_does_not_fit_a_branch_is_refused():
  rng = np.random.default_rng(0)
  x, t, cond, _ = _inputs(rng)
  branch = ControlTransformer(NETS['dit'], 2)
  with pytest.raises(ValueError, match='control is 6x6; for images or latents of 4x4 it must be as large'):
    jax.eval_shape(branch.init, jax.random.key(0), x, t, cond | {'control': jnp.zeros((2, 6, 6, 3))})
  with pytest.raises(ValueError, match='this MMDiT has `single` or `dual` ones'):
    jax.eval_shape(
      ControlTransformer(NETS['mmdit'].clone(single=1), 2).init,
      jax.random.key(0), x, t, cond | {'control': jnp.zeros((2, 4, 4, 3))},
    )  # fmt: skip
  np.testing.assert_array_equal(spread(jnp.arange(2.0).reshape(2, 1, 1, 1), 5)[:, 0, 0, 0], [0, 0, 0, 1, 1])
  with pytest.raises(ValueError, match='a control branch of 3 blocks for a network of 2'):
    spread(jnp.zeros((3, 1, 1, 1)), 2)


def test_edges_are_where_a_square_begins():
  image = np.full((32, 32, 3), -1, np.float32)
  image[8:24, 8:24] = 1
  edges = canny_edges(image)
  wanted = np.zeros((32, 32), bool)
  wanted[8:24, 8:24] = True
  wanted[9:23, 9:23] = False
  assert edge_f1(edges, wanted) == 1
  assert edges.sum() < 80, 'edges are thin'
  assert not canny_edges(np.zeros((8, 8, 3), np.float32)).any()
  made = canny(image)
  assert made.shape == image.shape and set(np.unique(made)) == {0, 1}
  faint = np.where(image > 0, 0.1, -0.1).astype(np.float32)
  assert not canny_edges(faint).any() and canny_edges(faint, low=0.01, high=0.02).any()
  with pytest.raises(ValueError, match='wanted 0 < low <= high'):
    canny(image, low=0.2, high=0.1)


def test_f1_counts_edges_that_are_near():
  one, two = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
  one[4], two[5] = True, True
  assert edge_f1(one, two) == 1
  two[12] = True
  np.testing.assert_allclose(edge_f1(one, two), 2 / 3)
  assert edge_f1(one, one, reach=0) == 1 and edge_f1(one, two, reach=0) < 2 / 3
  assert edge_f1(np.zeros_like(one), np.zeros_like(one)) == 1 and edge_f1(one, np.zeros_like(one)) == 0


def test_a_record_gets_its_control():
  image = np.zeros((8, 8, 3), np.float32)
  image[:, 4:] = 1
  made = with_control(lambda record, rng: record | {'text': 1}, canny)({'image': image}, np.random.default_rng(0))
  assert made['text'] == 1 and made['control_scale'] == 1
  np.testing.assert_array_equal(made['control'], canny(image))
