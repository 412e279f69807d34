"""What every network owes its callers. A new network adds a row to NETWORKS."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models import unet
from jaxgen.models.dit import DiT
from jaxgen.models.edm_unet import EDMUNet
from jaxgen.models.layers.group_norm import GroupNorm
from jaxgen.models.mmdit import MMDiT
from jaxgen.models.pixart import PixArt


class Case(NamedTuple):
  """A network, small, and what it may depend on."""

  net: Any
  image: tuple[int, int, int]
  out_channels: int
  cond: dict[str, jax.Array]
  zero_at_start: bool  # the output before any training


_small_dit = functools.partial(DiT, patch=2, depth=2, width=32, heads=2)
_small_unet = functools.partial(
  unet.UNet, width=16, multipliers=(1, 2), blocks=0, attention=(1,), heads=2, groups=4, dropout=0.1
)
_smaller_unet = functools.partial(_small_unet, multipliers=(1,), attention=())
_labels = {'label': jnp.array([0, 3, 5])}  # 5 is the null class
_text = {'text': jnp.asarray(np.random.default_rng(4).standard_normal((3, 5, 12), np.float32))}

NETWORKS = {
  'dit': Case(_small_dit(num_classes=5), (8, 8, 3), 3, _labels, zero_at_start=True),
  'dit_unconditional': Case(_small_dit(), (8, 4, 3), 3, {}, zero_at_start=True),
  'dit_learned_sigma': Case(_small_dit(num_classes=5, learn_sigma=True), (8, 8, 4), 8, _labels, zero_at_start=True),
  'dit_interval': Case(
    _small_dit(num_classes=5, interval=True),
    (8, 8, 3),
    3,
    _labels | {'interval': jnp.array([0.0, 250.0, 999.0])},
    zero_at_start=True,
  ),
  'dit_options': Case(
    _small_dit(qk_norm=True, rms_norm=True, swiglu=True, rope=True, registers=3, bottleneck=6),
    (8, 4, 3),
    3,
    {},
    zero_at_start=True,
  ),
  'mmdit': Case(
    MMDiT(patch=2, depth=2, width=16, heads=2),
    (4, 8, 4),
    4,
    _text | {'pooled': jnp.ones((3, 6))},
    zero_at_start=True,
  ),
  'pixart': Case(
    PixArt(patch=2, depth=2, width=16, heads=2, pooled=True),
    (4, 8, 4),
    4,
    _text | {'pooled': jnp.ones((3, 6))},
    zero_at_start=True,
  ),
  'unet_text': Case(_smaller_unet(transformer=1, style=unet.STABLE), (4, 8, 4), 4, _text, zero_at_start=True),
  'unet_ddpm': Case(_small_unet(style=unet.DDPM), (8, 4, 3), 3, {}, zero_at_start=True),
  'unet_adm': Case(_small_unet(num_classes=6, learn_sigma=True), (8, 8, 3), 6, _labels, zero_at_start=True),
  'edm_unet': Case(
    EDMUNet(width=8, multipliers=(1, 1), blocks=0, num_classes=6, smooth=True),
    (8, 8, 3),
    3,
    _labels,
    zero_at_start=False,
  ),
}


def perturbed(params, scale=0.1):
  """The parameters with noise on each, so that what starts at zero takes part."""
  draw = np.random.default_rng(2).standard_normal
  return jax.tree.map(lambda leaf: leaf + scale * draw(leaf.shape, np.float32), params)


class Made(NamedTuple):
  """A case with its parameters and inputs; `forward` is compiled once for all tests."""

  case: Case
  start: Any
  params: Any
  x: jax.Array
  t: jax.Array
  forward: Any  # (params, x, t, cond) -> output


# Each is the like of another here, or has a test file of its own.
SLOW = {'dit_unconditional', 'dit_learned_sigma', 'dit_interval', 'unet_ddpm', 'edm_unet'}


@pytest.fixture(
  params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETWORKS], scope='module'
)
def made(request) -> Made:
  case = NETWORKS[request.param]
  x = jnp.asarray(np.random.default_rng(1).standard_normal((3, *case.image), np.float32))
  t = jnp.array([1.0, 500.0, 999.0])
  start = jax.jit(lambda key: case.net.init(key, x, t, case.cond)['params'])(jax.random.key(0))
  forward = jax.jit(lambda params, *inputs: case.net.apply({'params': params}, *inputs, train=False))
  return Made(case, start, perturbed(start), x, t, forward)


def _changed(before, after):
  """Which images of two batches differ."""
  return [bool(np.abs(a - b).max() > 1e-3) for a, b in zip(np.asarray(before), np.asarray(after), strict=True)]


def test_output_is_a_float32_image_of_the_inputs_size(made):
  out = made.forward(made.params, made.x, made.t, made.case.cond)
  assert out.shape == (3, *made.case.image[:2], made.case.out_channels)
  assert out.dtype == jnp.float32


def test_parameters_are_float32(made):
  assert {leaf.dtype for leaf in jax.tree.leaves(made.start)} == {jnp.dtype('float32')}


def test_output_at_the_start(made):
  out = made.forward(made.start, made.x, made.t, made.case.cond)
  assert bool((np.asarray(out) == 0).all()) == made.case.zero_at_start


def test_every_parameter_matters(made):
  def projection(params):
    out = made.forward(params, made.x, made.t, made.case.cond)
    return jnp.sum(out * np.random.default_rng(3).standard_normal(out.shape, np.float32))

  grads = jax.jit(jax.grad(projection))(made.params)
  silent = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(grads) if not np.asarray(leaf).any()]
  assert not silent


def test_every_output_pixel_sees_every_input_pixel_of_its_image_alone(made):
  def gray(x):
    return made.forward(made.params, x, made.t, made.case.cond).mean(axis=-1)

  jacobian = np.asarray(jax.jit(jax.jacrev(gray))(made.x))  # b h w, b h w c
  seen = (jacobian != 0).any(axis=-1)
  for output in range(3):
    for image in range(3):
      block = seen[output, :, :, image]
      assert block.all() if output == image else not block.any()


def test_time_matters(made):
  before = made.forward(made.params, made.x, made.t, made.case.cond)
  after = made.forward(made.params, made.x, made.t.at[0].add(10), made.case.cond)
  assert _changed(before, after) == [True, False, False]


def test_conditioning_matters(made):
  before = made.forward(made.params, made.x, made.t, made.case.cond)
  for name, value in made.case.cond.items():
    after = made.forward(made.params, made.x, made.t, made.case.cond | {name: value.at[0].add(1)})
    assert _changed(before, after) == [True, False, False], name


def test_an_image_does_not_depend_on_its_batch(made):
  together = made.forward(made.params, made.x, made.t, made.case.cond)
  cond = {name: value[1:2] for name, value in made.case.cond.items()}
  alone = made.forward(made.params, made.x[1:2], made.t[1:2], cond)
  np.testing.assert_allclose(alone, together[1:2], rtol=1e-5, atol=1e-5)


def test_group_norm_is_that_of_flax():
  """Far from zero, where a variance as a difference of means would lose what there is of it."""
  x = 1e2 + jax.random.normal(jax.random.key(0), (3, 5, 4, 12)) * jnp.arange(1, 13).reshape(1, 1, 1, 12)
  params = {'scale': jnp.linspace(-1, 2, 12), 'bias': jnp.linspace(3, 1, 12)}
  ours = GroupNorm(4, 1e-5)
  flax = nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False)
  assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)['params']) == jax.tree.map(jnp.shape, params)

  def value(net, params, x):
    return jnp.sum(jnp.sin(net.apply({'params': params}, x)))

  for net in (ours, flax):
    assert net.apply({'params': params}, x.astype(jnp.bfloat16)).dtype == jnp.float32
  got, want = (jax.value_and_grad(functools.partial(value, net), (0, 1))(params, x) for net in (ours, flax))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, want)
  with pytest.raises(ValueError, match='12 features do not divide into 5 groups'):
    GroupNorm(5).init(jax.random.key(0), x)
