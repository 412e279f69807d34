"""The contract of every sampler, on denoisers known in closed form; guidance, clipping and grids."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.processes import parameterisation, posterior, times
from jaxgen.processes.process import Prediction, corrupt, image_noise
from jaxgen.processes.vp import vp_linear
from jaxgen.samplers import dpm_ancestral, exponential, grids
from jaxgen.samplers.clipping import clipped
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.dpm_solver import dpm_multistep, dpm_singlestep
from jaxgen.samplers.edm import edm
from jaxgen.samplers.euler import euler
from jaxgen.samplers.euler_maruyama import euler_maruyama
from jaxgen.samplers.guidance import Term, guided
from jaxgen.samplers.heun import heun
from jaxgen.samplers.lms import lms
from jaxgen.samplers.unipc import unipc
from tests.analytic import PROCESSES, compiled, flow, gaussian, mixture

SAMPLERS = {
  'ddpm': ddpm,
  'ddim': ddim,
  'ddim_noisy': partial(ddim, eta=1.0),
  'euler': euler,
  'heun': heun,
  'dpm_multistep': partial(dpm_multistep, order=3),
  'dpm_singlestep': partial(dpm_singlestep, order=3),
  'dpm_noise': partial(dpm_multistep, space=exponential.noise),
  'dpm_sde': partial(dpm_multistep, eta=1.0),
  'unipc': partial(unipc, order=3),
  'euler_maruyama': euler_maruyama,
  'edm': partial(edm, noise=1.0),
  'lms': lms,
  'dpm_2s_ancestral': dpm_ancestral.dpm_2s_ancestral,
  'dpm_two_stage_sde': dpm_ancestral.dpm_sde,
}
FIRST = ['ddpm', 'ddim', 'ddim_noisy', 'euler', 'heun']
ODE = {'ddim': 1, 'euler': 1, 'heun': 2}  # deterministic, with their orders
NOISY = ['ddpm', 'ddim_noisy', 'dpm_sde', 'euler_maruyama', 'edm', 'dpm_2s_ancestral', 'dpm_two_stage_sde']
MEAN, VARIANCE = 0.4, 0.25
N, STEPS = 2048, 100
X = np.linspace(-2, 2, N, dtype=np.float32).reshape(N, 1, 1, 1)

every_process = pytest.mark.parametrize('process', PROCESSES)
# The solvers whose order tests/test_solvers.py measures are sampled from where an end of time is hardest.
every_pair = pytest.mark.parametrize(
  ('process', 'sampler'),
  [
    (process, sampler)
    for sampler in SAMPLERS
    for process in (PROCESSES if sampler in FIRST else ['vp_cosine_1000', 'rectified_flow'])
  ],
)
every_ode = pytest.mark.parametrize('sampler', ODE)


@functools.cache
def _noise(n, seed=0):
  keys = jax.random.split(jax.random.key(seed), n)
  return image_noise(keys, (1, 1, 1)), keys


def _run(sampler, denoise, process, x, grid, **kwargs):
  return compiled(lambda x, grid, kwargs: sampler(denoise, process, x, grid, **kwargs), x, grid, kwargs)


@functools.cache
def _program(process, sampler):
  """One compiled program serves every test of a process and a sampler: N pixels, STEPS steps, a mixture of two."""
  process, sampler = PROCESSES[process], SAMPLERS[sampler]

  def program(x, keys, grid, means, variance):
    return sampler(mixture(process, means, variance), process, x, grid, keys=keys)

  return jax.jit(program)


def _sample(process, sampler, *, means=(MEAN, MEAN), variance=VARIANCE, x=None, grid=None):
  """N samples; equal means make one Gaussian. A grid that is too short stands still at first."""
  noise, keys = _noise(N)
  x = noise if x is None else x
  grid = grids.quadratic(STEPS) if grid is None else grid
  grid = np.append(np.full(STEPS + 1 - len(grid), grid[0], np.float32), grid)
  return np.asarray(_program(process, sampler)(x, keys, grid, np.float32(means), np.float32(variance)))


def _flow(process, x, start, end):
  return compiled(lambda x: flow(PROCESSES[process], MEAN, VARIANCE, x, start, end), x)


# Exactness


@every_pair
def test_a_single_image_is_reached_from_any_noise(process, sampler):
  got = _sample(process, sampler, variance=0.0)
  np.testing.assert_allclose(got, np.full_like(got, MEAN), atol=5e-6)


@every_pair
def test_a_gaussian_is_sampled(process, sampler):
  """Mean and variance, within four standard errors and the bias of a sampler of order 1 at 100 steps."""
  got = _sample(process, sampler)
  assert abs(got.mean() - MEAN) < 4 * (VARIANCE / N) ** 0.5 + 0.005
  assert abs(got.var() / VARIANCE - 1) < 4 * (2 / N) ** 0.5 + 0.04


@every_pair
def test_a_mixture_is_sampled(process, sampler):
  """The distribution function lies within the Kolmogorov-Smirnov band at p = 0.001, and 0.01 of bias."""
  means, variance = (-0.8, 0.5), 0.02
  got = np.ravel(_sample(process, sampler, means=means, variance=variance))
  cdf = lambda y: np.mean([stats.norm(m, variance**0.5).cdf(y) for m in means], axis=0)  # noqa: E731
  assert stats.kstest(got, cdf).statistic < 1.95 / N**0.5 + 0.01


@pytest.mark.parametrize('process', ['vp_linear_1000', 'rectified_flow'])
def test_a_mixture_is_sampled_with_the_large_variance(process, monkeypatch):
  monkeypatch.setitem(SAMPLERS, 'ddpm_large', partial(ddpm, variance=posterior.large))
  test_a_mixture_is_sampled(process, 'ddpm_large')


@every_process
@every_ode
def test_the_error_falls_with_the_order_of_the_method(process, sampler):
  """Against the closed-form flow, away from the end where the last step of Heun is Euler's."""
  start, end = 0.9, 0.1
  exact = _flow(process, X, start, end)

  def error(steps):
    grid = (start + (end - start) * np.arange(steps + 1) / steps).astype(np.float32)
    return np.sqrt(np.mean((_sample(process, sampler, x=X, grid=grid) - exact) ** 2))

  coarse, fine = {1: (25, 100), 2: (10, 40)}[ODE[sampler]]
  order = np.log2(error(coarse) / error(fine)) / 2
  assert abs(order - ODE[sampler]) < 0.25, f'order {order:.2f}'


@every_process
def test_heun_is_more_accurate_down_to_the_data(process):
  exact = _flow(process, X, 1.0, 0.0)
  of_euler, of_heun = (np.max(np.abs(_sample(process, s, x=X) - exact)) for s in ('euler', 'heun'))
  assert of_heun < 2e-3
  assert of_heun < of_euler / 5


# Samplers among each other


@every_process
def test_ddim_with_eta_1_is_ddpm(process):
  grid = grids.trailing(STEPS, 1000)
  noisy, ancestral, still = (_sample(process, s, grid=grid) for s in ('ddim_noisy', 'ddpm', 'ddim'))
  np.testing.assert_allclose(noisy, ancestral, atol=2e-5)
  assert np.mean(np.abs(noisy - still)) > 0.01


@every_process
def test_euler_is_ddim_without_noise(process):
  of_euler, of_ddim = (_sample(process, s) for s in ('euler', 'ddim'))
  np.testing.assert_allclose(of_euler, of_ddim, atol=2e-5)


def test_a_learned_variance_spans_small_to_large():
  process, (x, keys) = PROCESSES['vp_linear_1000'], _noise(8)
  base = gaussian(process, MEAN, VARIANCE)

  def saying(value):
    return lambda x_t, t, cond: base(x_t, t, cond)._replace(variance=jnp.full_like(x_t, value))

  run = lambda denoise, variance: _run(  # noqa: E731
    partial(ddpm, variance=variance), denoise, process, x, grids.spaced(10, 1000), keys=keys
  )
  np.testing.assert_allclose(run(saying(-1.0), posterior.learned), run(base, posterior.small), atol=1e-5)
  np.testing.assert_allclose(run(saying(1.0), posterior.learned), run(base, posterior.large), atol=1e-5)
  with pytest.raises(ValueError, match='predicts no variance'):
    run(base, posterior.learned)


def test_ddpm_follows_the_published_update_step_by_step():
  """Ho et al.'s Algorithm 2 in float64, from the betas, with clipped x0."""
  process, steps = vp_linear(50), 50
  betas = np.linspace(0.1, 20, steps) / steps
  bar = np.cumprod(1 - betas)
  x, keys = _noise(3)
  apply = lambda x_t, t, cond: jnp.sin(3 * x_t) + expand_like(t, x_t) / 100  # noqa: E731
  denoise = parameterisation.denoiser(apply, process, parameterisation.eps)
  got = _run(ddpm, clipped(denoise, process), process, x, grids.spaced(steps, steps), keys=keys)
  want = np.asarray(x, np.float64)
  for i, k in enumerate(reversed(range(steps))):
    eps = np.sin(3 * want) + k / 100
    x0 = np.clip((want - np.sqrt(1 - bar[k]) * eps) / np.sqrt(bar[k]), -1, 1)
    before = bar[k - 1] if k else 1.0
    mean = (np.sqrt(before) * betas[k] * x0 + np.sqrt(1 - betas[k]) * (1 - before) * want) / (1 - bar[k])
    noise = image_noise(jax.vmap(jax.random.fold_in, (0, None))(keys, i), (1, 1, 1))
    want = mean + np.sqrt(betas[k] * (1 - before) / (1 - bar[k])) * noise
  np.testing.assert_allclose(got, want, atol=1e-4)


def expand_like(t, x):
  return t.reshape(-1, *(1,) * (x.ndim - 1))


# Images depend on their own keys


@pytest.mark.parametrize('sampler', NOISY)
def test_an_image_is_the_same_in_any_batch(sampler):
  process, (x, keys) = PROCESSES['rectified_flow'], _noise(64)
  denoise = mixture(process, (-0.8, 0.5), 0.02)
  run = lambda n: _run(SAMPLERS[sampler], denoise, process, x[:n], grids.uniform(8), keys=keys[:n])  # noqa: E731
  all_64 = run(64)
  for n in (1, 7):
    np.testing.assert_allclose(run(n), all_64[:n], atol=1e-6)


@pytest.mark.parametrize('sampler', NOISY)
def test_a_noisy_sampler_asks_for_keys(sampler):
  process, (x, _) = PROCESSES['vp_linear'], _noise(2)
  with pytest.raises(ValueError, match='got no keys'):
    SAMPLERS[sampler](gaussian(process, MEAN, VARIANCE), process, x, grids.uniform(2))


def test_eta_is_the_share_of_ddpms_noise():
  """The spread of one step over 2048 keys, from one x."""
  process, (_, keys) = PROCESSES['vp_linear'], _noise(N)
  x, grid = jnp.full((N, 1, 1, 1), 0.7), np.float32([0.6, 0.3])
  spread = lambda eta: _run(  # noqa: E731
    partial(ddim, eta=eta), gaussian(process, MEAN, VARIANCE), process, x, grid, keys=keys
  ).std()
  np.testing.assert_allclose(spread(0.5), 0.5 * spread(1.0), rtol=1e-3)
  assert spread(0.0) < 1e-6


def test_eta_has_a_range():
  process, (x, _) = PROCESSES['vp_linear'], _noise(2)
  with pytest.raises(ValueError, match='eta is 2'):
    ddim(gaussian(process, MEAN, VARIANCE), process, x, grids.uniform(2), eta=2.0)


@every_process
@pytest.mark.parametrize('sampler', ['ddpm', 'heun'])
def test_a_wrong_network_cannot_make_nan(process, sampler):
  """Images through eps, x0, v and velocity, one each, of a network that says the same at all times."""
  process, (x, keys) = PROCESSES[process], _noise(4)
  spaces = (parameterisation.eps, parameterisation.x0, parameterisation.v, parameterisation.velocity)

  def denoise(x_t, t, cond):
    predictions = [space(process).predict(0.3 * x_t + 0.1, x_t, t) for space in spaces]
    return jax.tree.map(lambda *leaves: jnp.stack([leaf[i] for i, leaf in enumerate(leaves)]), *predictions)

  got = _run(SAMPLERS[sampler], clipped(denoise, process), process, x, grids.uniform(4), keys=keys)
  assert np.isfinite(got).all()
  assert np.max(np.abs(got)) < 10


# Guidance

CLASS_MEANS, NULL = jnp.array([-0.5, 0.5, 0.1]), {'label': 2}
LABELS = jnp.array([0, 1, 1, 0])


def _by_class(process):
  return gaussian(process, lambda cond: CLASS_MEANS[cond['label']], VARIANCE)


@pytest.mark.parametrize('process', ['vp_cosine', 'rectified_flow'])
@pytest.mark.parametrize('sampler', ['euler', 'heun'])
def test_guided_gaussians_of_one_variance_are_a_gaussian_further_out(process, sampler):
  """The guided denoiser is that of N(m + (w - 1)(m - m_null), v), so samples lie where its flow takes them."""
  process, w, x = PROCESSES[process], 2.5, _noise(4)[0]
  means = CLASS_MEANS[LABELS]
  means = (means + (w - 1) * (means - CLASS_MEANS[2])).reshape(4, 1, 1, 1)
  exact = compiled(lambda x: flow(process, means, VARIANCE, x, 1.0, 0.0), x)
  denoise = guided(_by_class(process), [Term(NULL, w)])
  got = _run(SAMPLERS[sampler], denoise, process, x, grids.quadratic(128), cond={'label': LABELS})
  np.testing.assert_allclose(got, exact, atol=0.05 if ODE[sampler] == 1 else 0.005)


def _counted(denoise):
  sizes = []

  def counting(x_t, t, cond):
    sizes.append(len(x_t))
    return denoise(x_t, t, cond)

  return counting, sizes


def _at(process, t=0.6):
  """Arguments of a denoiser."""
  x, time = np.asarray(_noise(4)[0]), np.full(4, t, np.float32)
  x_t = compiled(partial(corrupt, process), 0.3 * x, x[::-1], time)
  return jnp.asarray(x_t), jnp.asarray(time), {'label': LABELS}


def test_guidance_calls_the_network_once_for_both():
  process = PROCESSES['rectified_flow']
  base, sizes = _counted(_by_class(process))
  jax.eval_shape(guided(base, [Term(NULL, 3.0)]), *_at(process))
  assert sizes == [8]


def test_scale_1_is_the_unguided_network():
  process = PROCESSES['rectified_flow']
  base = _by_class(process)
  assert guided(base, [Term(NULL, 1.0)]) is base
  for scale in (jnp.float32(1), jnp.ones(4)):
    got, want = compiled(lambda *args: (guided(base, [Term(NULL, scale)])(*args), base(*args)), *_at(process))  # noqa: B023
    np.testing.assert_allclose(got.x0, want.x0, atol=1e-7)
    np.testing.assert_allclose(got.eps, want.eps, atol=1e-7)


def test_guidance_acts_on_all_channels_and_keeps_x_t_consistent():
  process = PROCESSES['vp_cosine']
  x_t, t, cond = _at(process)
  base, w = _by_class(process), jnp.array([0.0, 1.0, 2.0, 7.5])
  none = {'label': jnp.full(4, 2)}

  def run(x_t, t, cond):
    got = guided(base, [Term(NULL, w)])(x_t, t, cond)
    return got, base(x_t, t, cond), base(x_t, t, none), corrupt(process, got.x0, got.eps, t)

  got, with_condition, without, back = compiled(run, x_t, t, cond)
  wide = np.asarray(w).reshape(4, 1, 1, 1)
  np.testing.assert_allclose(got.x0, without.x0 + wide * (with_condition.x0 - without.x0), atol=1e-5)
  np.testing.assert_allclose(got.eps, without.eps + wide * (with_condition.eps - without.eps), atol=1e-5)
  np.testing.assert_allclose(back, x_t, atol=1e-5)


def test_guidance_keeps_the_conditional_variance():
  def denoise(x_t, t, cond):
    label = cond['label'].astype(jnp.float32).reshape(-1, 1, 1, 1)
    return Prediction(x0=x_t + label, eps=x_t, variance=label)

  x_t, t, cond = _at(PROCESSES['rectified_flow'])
  np.testing.assert_array_equal(guided(denoise, [Term(NULL, 4.0)])(x_t, t, cond).variance.ravel(), LABELS)


def test_null_vectors_and_other_entries_of_cond():
  def denoise(x_t, t, cond):
    value = cond['text'].sum((1, 2)) + cond['size']
    return Prediction(x0=x_t * 0 + value.reshape(-1, 1, 1, 1), eps=x_t)

  x_t, t, _ = _at(PROCESSES['rectified_flow'])
  cond = {'text': jnp.ones((4, 2, 3)), 'size': jnp.arange(4.0)}
  got = guided(denoise, [Term({'text': np.full((2, 3), 0.5)}, 2.0)])(x_t, t, cond)  # text 6 against 3; size not dropped
  np.testing.assert_allclose(got.x0.ravel(), 2 * (6 + cond['size']) - (3 + cond['size']))


@pytest.mark.parametrize(('t', 'inside'), [(0.2, True), (0.6, True), (0.61, False), (0.1, False)])
def test_guidance_in_an_interval(t, inside):
  process = PROCESSES['rectified_flow']
  base = _by_class(process)
  expected = guided(base, [Term(NULL, 3.0)]) if inside else base
  within = guided(base, [Term(NULL, 3.0)], interval=(0.2, 0.6))
  got, want = compiled(lambda *args: (within(*args), expected(*args)), *_at(process, t))
  np.testing.assert_allclose(got.x0, want.x0, atol=1e-6)


def test_guidance_in_an_interval_for_images_at_different_times():
  process = PROCESSES['rectified_flow']
  base, t = _by_class(process), jnp.array([0.1, 0.3, 0.5, 0.9])
  x_t, _, cond = _at(process)
  denoisers = guided(base, [Term(NULL, 3.0)], interval=(0.2, 0.6)), guided(base, [Term(NULL, 3.0)]), base
  got, want, unguided = compiled(lambda *args: [denoise(*args) for denoise in denoisers], x_t, t, cond)
  np.testing.assert_allclose(got.x0[1:3], want.x0[1:3], atol=1e-6)
  np.testing.assert_allclose(got.x0[::3], unguided.x0[::3], atol=1e-6)


def test_guided_denoisers_compose():
  process = PROCESSES['rectified_flow']
  base = _by_class(process)
  twice = guided(clipped(guided(base, [Term(NULL, 2.0)]), process, 0.2), [Term(NULL, 3.0)])
  inner = clipped(guided(base, [Term(NULL, 2.0)]), process, 0.2)
  x_t, t, cond = _at(process)
  none = {'label': jnp.full(4, 2)}
  got, a, b = compiled(
    lambda x_t, t, cond: (twice(x_t, t, cond), inner(x_t, t, cond), inner(x_t, t, none)), x_t, t, cond
  )
  np.testing.assert_allclose(got.x0, b.x0 + 3 * (a.x0 - b.x0), atol=1e-5)


def test_a_scale_for_each_image_is_kept_by_an_outer_guidance():
  process, w = PROCESSES['rectified_flow'], jnp.array([1.0, 2.0, 3.0, 4.0])
  inner = guided(_by_class(process), [Term(NULL, w)])
  none = {'label': jnp.full(4, 2)}
  got, a, b = compiled(
    lambda x_t, t, cond: (guided(inner, [Term(NULL, 3.0)])(x_t, t, cond), inner(x_t, t, cond), inner(x_t, t, none)),
    *_at(process),
  )
  np.testing.assert_allclose(got.x0, b.x0 + 3 * (a.x0 - b.x0), atol=1e-5)


def test_guidance_without_a_condition_says_so():
  process = PROCESSES['rectified_flow']
  x_t, t, _ = _at(process)
  with pytest.raises(ValueError, match="guidance needs cond\\['label'\\]"):
    guided(_by_class(process), [Term(NULL, 2.0)])(x_t, t, {})


# Clipping and grids


def test_clipped_data_stays_in_range_and_eps_follows():
  process = PROCESSES['vp_linear']
  x_t, t, cond = _at(process, 0.3)
  denoise = clipped(gaussian(process, 1.5, VARIANCE), process, 1.0)

  def run(x_t, t, cond):
    got = denoise(x_t, t, cond)
    return got.x0, corrupt(process, got.x0, got.eps, t)

  x0, back = compiled(run, x_t, t, cond)
  assert np.max(np.abs(x0)) == 1
  np.testing.assert_allclose(back, x_t, atol=1e-6)


def test_grids_visit_the_steps_of_their_papers():
  k = lambda grid: (np.round(grid[:-1] * 1000).astype(int) - 1).tolist()  # noqa: E731
  assert k(grids.leading(4, 1000)) == [750, 500, 250, 0]
  assert k(grids.trailing(4, 1000)) == [999, 749, 499, 249]
  assert k(grids.spaced(4, 1000)) == [999, 666, 333, 0]
  assert k(grids.spaced(1, 1000)) == [999]
  assert k(grids.trailing(1000, 1000)) == list(range(999, -1, -1))
  # IDDPM's space_timesteps(1000, '250'), which DiT samples with.
  stride, at, steps = 999 / 249, 0.0, []
  for _ in range(250):
    steps.append(round(at))
    at += stride
  assert k(grids.spaced(250, 1000)) == steps[::-1]


@pytest.mark.parametrize(
  'grid',
  [
    grids.uniform(7),
    grids.quadratic(7),
    times.shift(grids.uniform(7), 3.0),
    grids.spaced(7, 1000),
    grids.leading(7, 1000),
    grids.trailing(7, 1000),
  ],
)
def test_grids_decrease_to_the_data(grid):
  assert grid.shape == (8,)
  assert grid.dtype == np.float32
  assert grid[-1] == 0
  assert 0.85 < grid[0] <= 1
  assert np.all(np.diff(grid) < 0)


def test_more_sampling_steps_than_the_process_has_are_refused():
  with pytest.raises(ValueError, match='2000 sampling steps of a process with 1000'):
    grids.spaced(2000, 1000)
  with pytest.raises(ValueError, match='2000 sampling steps of a process with 1000'):
    grids.leading(2000, 1000)


@pytest.mark.parametrize(
  'grid',
  [grids.uniform, grids.quadratic, *(partial(g, num_steps=9) for g in (grids.spaced, grids.leading, grids.trailing))],
)
def test_no_steps_at_all_are_refused(grid):
  with pytest.raises(ValueError, match=r'0 sampling steps.*use 1'):
    grid(0)
