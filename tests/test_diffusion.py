"""The diffusion objective: its loss is the analytic one, it learns, and it agrees with IDDPM's numbers."""

import pathlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.models.dit import DiT
from jaxgen.objectives.conditioning import Conditioner, Field, labels
from jaxgen.objectives.diffusion import vlb
from jaxgen.objectives.diffusion.diffusion import by_time, diffusion
from jaxgen.pretrained import dit as pretrained
from jaxgen.pretrained import layout
from jaxgen.processes import parameterisation, posterior, times, weighting
from jaxgen.processes.process import corrupt, image_noise
from jaxgen.processes.vp import vp_linear
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler
from jaxgen.train_state import TrainState
from tests.analytic import PROCESSES, gaussian

GOLDEN = pathlib.Path(__file__).parent / 'golden'
FLOW = PROCESSES['rectified_flow']
MEAN, VARIANCE = 0.3, 0.25
SPACES = {
  'eps': parameterisation.eps,
  'x0': parameterisation.x0,
  'v': parameterisation.v,
  'velocity': parameterisation.velocity,
}


class Fixed(nn.Module):
  """A network without parameters: a function of (x_t, network_time, cond)."""

  function: Any

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    return self.function(x, t, cond)


def _optimal(process, space):
  """The best network for N(MEAN, VARIANCE), which finds t from the time it is shown."""
  denoise = gaussian(process, MEAN, VARIANCE)

  def function(x, network_time, cond):
    t = (network_time + 1) / process.num_steps if process.num_steps else network_time / 1000
    return space.target(*denoise(x, t, cond)[:2], t)

  return Fixed(function)


def _objective(net, process=FLOW, **kwargs):
  defaults = {
    'shape': (1, 1, 1),
    'parameterisation': parameterisation.velocity,
    'times': times.uniform(),
    'sampler': Sampler(euler, grids.uniform(10)),
  }
  return diffusion(net, process, **{**defaults, **kwargs})


def _loss(objective, batch, params=None, seed=0):
  params = {'net': {}} if params is None else params
  loss = lambda params, batch, key: objective.phases[0].loss(params, None, {}, batch, key)  # noqa: E731
  return jax.jit(loss)(params, batch, jax.random.key(seed))


# The loss


@pytest.mark.parametrize('process', PROCESSES)
def test_the_optimal_denoiser_has_the_analytic_loss(process):
  """In the space of x0, the posterior's variance v s^2 / (a^2 v + s^2), in the others by the change of space."""
  process, n = PROCESSES[process], 16_384
  on = {
    'eps': weighting.on_eps,
    'x0': lambda w: w,
    'v': weighting.on_v,
    'velocity': weighting.on_velocity,
  }

  @jax.jit
  def got_and_want(key):
    image = MEAN + VARIANCE**0.5 * jax.random.normal(key, (n, 1, 1, 1))
    t = jnp.linspace(0.1, 0.9, 9)
    a, s = process.alpha(t), process.sigma(t)
    of_x0 = VARIANCE * s**2 / (a**2 * VARIANCE + s**2)
    draw = lambda key, b: jnp.resize(t, b)  # noqa: E731
    got, want = {}, {}
    for name, space in SPACES.items():
      objective = _objective(_optimal(process, space(process)), process, parameterisation=space, times=draw)
      got[name] = objective.phases[0].loss({'net': {}}, None, {}, {'image': image}, key)[0]
      want[name] = jnp.mean(of_x0 / on[name](weighting.uniform)(process, t))
    return got, want

  got, want = got_and_want(jax.random.key(1))
  for name in SPACES:
    np.testing.assert_allclose(got[name], want[name], rtol=0.05, err_msg=name)


def test_a_loss_in_another_space_is_that_spaces_loss():
  """JiT: the network says x0, the loss is the velocity's."""
  batch = {'image': jax.random.normal(jax.random.key(1), (64, 2, 2, 1))}
  velocity, x0 = parameterisation.velocity, parameterisation.x0
  predicts_x0 = _objective(
    _optimal(FLOW, x0(FLOW)), parameterisation=x0, loss_in=velocity, times=times.logit_normal(), shape=(2, 2, 1)
  )
  predicts_velocity = _objective(_optimal(FLOW, velocity(FLOW)), times=times.logit_normal(), shape=(2, 2, 1))
  np.testing.assert_allclose(_loss(predicts_x0, batch)[0], _loss(predicts_velocity, batch)[0], rtol=1e-4)


def test_a_margin_is_jits_smallest_denominator():
  """|v - v_hat|^2 with v = (x_t - x0) / max(t, 0.05), for the target too; here t = 0.01 and the network says 0."""
  x0 = partial(parameterisation.x0, margin=0.05)
  net = Fixed(lambda x, t, cond: jnp.zeros_like(x))
  objective = _objective(
    net, parameterisation=x0, loss_in=parameterisation.velocity, times=lambda key, b: jnp.full(b, 0.01)
  )
  got, _ = _loss(objective, {'image': jnp.full((4, 1, 1, 1), 0.5)})
  np.testing.assert_allclose(got, (0.5 / 0.05) ** 2, rtol=1e-3)


def test_the_weighting_multiplies_the_loss():
  batch = {'image': jax.random.normal(jax.random.key(1), (32, 1, 1, 1))}
  at = lambda key, b: jnp.full(b, 0.25)  # noqa: E731
  net = Fixed(lambda x, t, cond: jnp.zeros_like(x))
  plain, _ = _loss(_objective(net, times=at), batch)
  weighted, _ = _loss(_objective(net, times=at, weighting=weighting.min_snr(5.0)), batch)
  np.testing.assert_allclose(weighted, 5 * plain, rtol=1e-6)


def test_losses_are_float32_for_a_bfloat16_network():
  net = Fixed(lambda x, t, cond: x.astype(jnp.bfloat16))
  loss, aux = _loss(_objective(net), {'image': jnp.ones((8, 1, 1, 1), jnp.bfloat16)})
  assert loss.dtype == jnp.float32
  assert {value.dtype for value in aux.metrics.values()} == {jnp.dtype('float32')}
  images = _objective(net).sample({'net': {}}, {}, {}, jax.random.split(jax.random.key(0), 2))
  assert images.dtype == jnp.float32


def test_quarters_of_time_add_up_to_the_loss():
  each, t = jnp.arange(1.0, 6.0), jnp.array([0.0, 0.25, 0.3, 0.99, 1.0])
  got = by_time(each, t)
  np.testing.assert_allclose([got[f'loss_t{q}'] for q in ('00', '25', '50', '75')], [0.2, 1.0, 0.0, 1.8], rtol=1e-6)
  loss, aux = _loss(_objective(Fixed(lambda x, t, cond: x)), {'image': jnp.ones((16, 1, 1, 1))})
  np.testing.assert_allclose(sum(v for k, v in aux.metrics.items() if k.startswith('loss_t')), loss, rtol=1e-6)
  assert aux.metrics['loss'] == loss


def test_the_loss_does_not_depend_on_the_devices():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  net = Fixed(lambda x, t, cond: x * (1 + cond['label'].reshape(-1, 1, 1, 1)) + t.reshape(-1, 1, 1, 1) / 1000)
  objective = _objective(net, conditioner=labels(4, drop_rate=0.5), times=times.logit_normal(draw=times.stratified))
  batch = {'image': jax.random.normal(jax.random.key(0), (16, 1, 1, 1)), 'label': jnp.arange(16) % 4}
  one, _ = _loss(objective, batch)
  eight, _ = _loss(objective, jax.device_put(batch, sharding))
  np.testing.assert_allclose(one, eight, rtol=1e-6)


# Conditions


def test_drop_replaces_the_whole_condition_of_an_image():
  n = 4000
  cond = {'label': jnp.ones(n, jnp.int32), 'text': jnp.ones((n, 2, 3))}
  both = ('label', 'text')
  conditioner = Conditioner({'label': Field(7), 'text': Field(np.full((2, 3), 0.5, np.float32))}, {both: 0.1})
  dropped, everything = conditioner.dropped({}, {}, cond, drop_key=jax.random.key(0), encode_key=jax.random.key(1))
  gone = np.asarray(dropped['label']) == 7
  assert dropped['label'].dtype == jnp.int32
  np.testing.assert_array_equal(np.asarray(dropped['label'])[~gone], 1)
  np.testing.assert_array_equal(dropped['text'], np.where(gone, 0.5, 1.0)[:, None, None] * np.ones((1, 2, 3)))
  assert abs(gone.mean() - 0.1) < 4 * (0.09 / n) ** 0.5
  np.testing.assert_array_equal(everything, gone)


def test_the_network_sees_the_fields_of_the_conditioner():
  seen = []
  net = Fixed(lambda x, t, cond: seen.append(sorted(cond)) or x)
  batch = {'image': jnp.ones((2, 1, 1, 1)), 'label': jnp.zeros(2, jnp.int32), 'caption': jnp.zeros(2)}
  _loss(_objective(net), batch)
  _loss(_objective(net, conditioner=labels(3)), batch)
  assert seen == [[], ['label']]


def test_a_condition_that_the_batch_has_not_is_named():
  objective = _objective(Fixed(lambda x, t, cond: x), conditioner=Conditioner({'text': Field(0)}))
  with pytest.raises(ValueError, match=r"wants \['text'\], which the batch does not have; it has \['image', 'label'\]"):
    objective.init(jax.random.key(0), {}, {'image': jnp.ones((2, 1, 1, 1)), 'label': jnp.zeros(2)})


def test_a_drop_rate_is_a_probability():
  with pytest.raises(ValueError, match='is 10'):
    _objective(Fixed(lambda x, t, cond: x), conditioner=labels(2, drop_rate=10.0))


# Learned variance


def _golden_dit():
  net = DiT(patch=2, depth=3, width=48, heads=4, num_classes=10, learn_sigma=True)
  with np.load(GOLDEN / 'dit_tiny.npz') as file:
    tensors = {name[3:]: file[name] for name in file if name.startswith('sd/')}
  return net, layout.pretrained(pretrained.original(net, image_shape=(16, 16, 4)), tensors, source='file').params


def test_the_bound_agrees_with_iddpm_term_by_term():
  golden, process = dict(np.load(GOLDEN / 'iddpm_terms.npz')), vp_linear(1000)
  x0, noise, x_t, log_variance, mean = (
    jnp.asarray(golden[k].transpose(0, 2, 3, 1)) for k in ('x0', 'noise', 'xt', 'log_variance', 'mean')
  )
  net, params = _golden_dit()
  p = parameterisation.learned_variance(parameterisation.eps)
  cond = {'label': jnp.asarray(golden['y'], jnp.int32)}
  denoise = parameterisation.denoiser(partial(net.apply, {'params': params}), process, p)

  @jax.jit
  def terms(x_t, t):
    prediction, s = denoise(x_t, t, cond), t - 1 / 1000
    return (
      posterior.posterior_mean(process, prediction.x0, x_t, t, s),
      jnp.log(posterior.learned(process, prediction, t, s)),
      vlb.vlb_term(process, prediction, x0, x_t, t),
    )

  got_mean, got_log_variance, bits = terms(x_t, jnp.asarray((golden['t'] + 1) / 1000, jnp.float32))
  np.testing.assert_allclose(got_log_variance, log_variance, atol=1e-4)
  np.testing.assert_allclose(got_mean, mean, atol=1e-3)
  np.testing.assert_allclose(bits, golden['vb_bpd'], rtol=1e-3)
  first = jnp.full(3, 1e-3)
  np.testing.assert_allclose(terms(corrupt(process, x0, noise, first), first)[2], golden['vb_bpd_t0'], rtol=1e-5)
  np.testing.assert_allclose(vlb.prior_term(process, x0), golden['prior_bpd'], rtol=1e-5)


class Halves(nn.Module):
  """A mean and a variance with a parameter each."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    mean, variance = (self.param(name, nn.initializers.zeros, ()) for name in ('mean', 'variance'))
    return jnp.concatenate([mean * x, jnp.full_like(x, variance)], axis=-1)


def test_the_hybrid_loss_trains_the_variance_by_the_bound_alone():
  process = vp_linear(1000)
  batch = {'image': jax.random.normal(jax.random.key(0), (64, 2, 2, 1))}
  p, key = parameterisation.eps, jax.random.key(0)
  t = jnp.full(64, 0.3)
  common = {'shape': (2, 2, 1), 'times': lambda key, b: t}
  of_eps = _objective(Fixed(lambda x, t, cond: 0.5 * x), process, parameterisation=p, **common)
  learned = parameterisation.learned_variance(p)

  def hybrid(params, weight):
    objective = _objective(Halves(), process, parameterisation=learned, vlb_weight=weight, **common)
    return objective.phases[0].loss({'net': params}, None, {}, batch, key)

  @jax.jit
  def run(params):
    simple = of_eps.phases[0].loss({'net': {}}, None, {}, batch, key)[0]
    hybrids = [jax.value_and_grad(hybrid, has_aux=True)(params, weight) for weight in (0.0, 1e-3)]
    x_t = corrupt(process, batch['image'], image_noise(jax.random.split(key, 64), (2, 2, 1)), t)
    prediction = p(process).predict(0.5 * x_t, x_t, t)._replace(variance=jnp.full_like(x_t, 0.5))
    return simple, hybrids, vlb.vlb_term(process, prediction, batch['image'], x_t, t).mean()

  simple, [(_, without), ((loss, aux), once)], term = run({'mean': 0.5, 'variance': 0.5})
  np.testing.assert_allclose(aux.metrics['vlb'], 1000 * term, rtol=0.2)  # other noise, the same expectation
  np.testing.assert_allclose(loss, simple + aux.metrics['vlb'] / 1000, rtol=1e-5)
  assert without['variance'] == 0
  assert once['variance'] != 0
  np.testing.assert_allclose(once['mean'], without['mean'], rtol=1e-5)


def test_times_drawn_by_importance_weigh_the_bound_too():
  t, nothing = jnp.full(4, 0.3), jnp.zeros(4)
  sampler = times.Importance(dict, lambda memory, key, b: (t, nothing), lambda memory, t, losses: memory)
  p, process = parameterisation.learned_variance(parameterisation.eps), vp_linear(1000)
  objective = _objective(Halves(), process, parameterisation=p, shape=(2, 2, 1), times=sampler)
  state = TrainState(jnp.int32(0), jnp.int32(0), {}, {}, {}, {'times': {}})
  params = {'net': {'mean': 0.5, 'variance': 0.5}}
  run = jax.jit(lambda batch, key: objective.phases[0].loss(params, state, {}, batch, key))
  loss, aux = run({'image': jnp.ones((4, 2, 2, 1))}, jax.random.key(0))
  assert loss == aux.metrics['vlb'] == 0


def test_a_learned_variance_needs_steps():
  with pytest.raises(ValueError, match='give the process num_steps'):
    _objective(Halves(), parameterisation=parameterisation.learned_variance(parameterisation.eps))


# Learning


class Linear(nn.Module):
  """x0 = weight x_t + bias."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    return self.param('weight', nn.initializers.zeros, ()) * x + self.param('bias', nn.initializers.zeros, ())


def _train(objective, batch_of, params, optimizer, steps):
  def step(carry, key):
    params, opt_state = carry
    batch_key, loss_key = jax.random.split(key)
    loss = lambda params: objective.phases[0].loss(params, None, {}, batch_of(batch_key), loss_key)[0]  # noqa: E731
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), _keys(steps)))
  return run(params)[0][0]


def _keys(n):
  return jax.random.split(jax.random.key(5), n)


@pytest.mark.parametrize('process', ['vp_cosine_1000', 'rectified_flow'])
def test_a_linear_network_learns_the_posterior_mean(process):
  """At one t, weight = a v / (a^2 v + s^2) and bias = (1 - weight a) m: Eq. 1 of tests/analytic.py."""
  process, t = PROCESSES[process], 0.4
  objective = _objective(Linear(), process, parameterisation=parameterisation.x0, times=lambda key, b: jnp.full(b, t))
  batch_of = lambda key: {'image': MEAN + VARIANCE**0.5 * jax.random.normal(key, (512, 1, 1, 1))}  # noqa: E731
  params = jax.jit(lambda key: objective.init(key, {}, batch_of(key)))(jax.random.key(0))['params']
  learned = _train(objective, batch_of, params, optax.adam(optax.cosine_decay_schedule(0.05, 300)), 300)['net']
  a, s = process.alpha(jnp.float32(t)), process.sigma(jnp.float32(t))
  weight = a * VARIANCE / (a**2 * VARIANCE + s**2)
  np.testing.assert_allclose(learned['weight'], weight, rtol=0.02)
  np.testing.assert_allclose(learned['bias'], (1 - weight * a) * MEAN, rtol=0.03)


class Mlp(nn.Module):
  """A small network on images of two numbers."""

  @nn.compact
  def __call__(self, x, t, cond, *, train):
    time = t[:, None] / 1000
    h = jnp.concatenate([x[:, 0, 0], jnp.cos(3 * time), jnp.sin(3 * time), nn.Embed(5, 8)(cond['label'])], axis=1)
    for _ in range(3):
      h = nn.silu(nn.Dense(64)(h))
    return nn.Dense(2)(h)[:, None, None]


CORNERS = jnp.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])


@pytest.fixture(scope='module')
def toy():
  """Four classes, each a small Gaussian at a corner, learned with dropped labels."""
  objective = _objective(
    Mlp(),
    shape=(1, 1, 2),
    conditioner=labels(4, drop_rate=0.3),
    parameterisation=partial(parameterisation.x0, margin=0.05),
    loss_in=parameterisation.velocity,
    times=times.logit_normal(draw=times.stratified),
    sampler=Sampler(euler, grids.uniform(40)),
    guide=(classifier_free(1.0),),
  )

  def batch_of(key):
    label_key, noise_key = jax.random.split(key)
    label = jax.random.randint(label_key, (256,), 0, 4)
    points = CORNERS[label] + 0.05 * jax.random.normal(noise_key, (256, 2))
    return {'image': points[:, None, None], 'label': label}

  params = jax.jit(lambda key: objective.init(key, {}, batch_of(key)))(jax.random.key(0))['params']
  return objective, _train(objective, batch_of, params, optax.adam(optax.cosine_decay_schedule(1e-2, 800)), 800)


def test_a_toy_is_learned_end_to_end(toy):
  objective, params = toy
  label = jnp.repeat(jnp.arange(4), 64)
  draw = jax.jit(objective.sample)
  points = draw(params, {}, {'label': label}, _keys(256))[:, 0, 0]
  error = points - CORNERS[label]
  assert jnp.max(jnp.abs(error.reshape(4, 64, 2).mean(1))) < 0.05
  assert 0.01 < error.std() < 0.1
  label = jnp.full(256, 4)  # no label: all four corners
  points = draw(params, {}, {'label': label}, _keys(256))[:, 0, 0]
  quadrant = np.asarray((points > 0) @ jnp.array([2, 1]))
  assert np.bincount(quadrant, minlength=4).min() > 30
  assert jnp.mean(jnp.abs(jnp.abs(points) - 0.5)) < 0.12


def test_a_sample_depends_on_its_key_and_label_alone(toy):
  objective, params = toy
  label, keys = jnp.arange(64) % 4, _keys(64)
  run = lambda n: jax.jit(objective.sample)(params, {}, {'label': label[:n]}, keys[:n])  # noqa: E731
  for n in (1, 7):
    np.testing.assert_allclose(run(n), run(64)[:n], atol=1e-5)


def test_samples_are_clipped_unless_they_are_latents():
  net = Fixed(lambda x, t, cond: jnp.full_like(x, 3.0))
  x0 = parameterisation.x0
  keys = _keys(2)
  assert jnp.all(_objective(net, parameterisation=x0).sample({'net': {}}, {}, {}, keys) == 1)
  got = _objective(net, parameterisation=x0, limit=None).sample({'net': {}}, {}, {}, keys)
  np.testing.assert_allclose(got, jnp.full_like(got, 3.0), rtol=1e-5)


def test_init_needs_only_shapes():
  batch = {'image': jax.ShapeDtypeStruct((32, 1, 1, 2), jnp.float32), 'label': jax.ShapeDtypeStruct((32,), jnp.int32)}
  state = _objective(Mlp(), shape=(1, 1, 2), conditioner=labels(4)).init(jax.random.key(0), {}, batch)
  assert state['params']['net']['Dense_0']['kernel'].shape == (12, 64)
  assert state['extra'] == {}


def test_noise_is_drawn_by_image():
  keys = _keys(3)
  np.testing.assert_array_equal(image_noise(keys, (2, 2, 1))[1], jax.random.normal(keys[1], (2, 2, 1)))
