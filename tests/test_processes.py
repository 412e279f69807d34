"""The contract of every process and every parameterisation, time sampler and weighting."""

import functools
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.processes import parameterisation, posterior, times, weighting
from jaxgen.processes.process import corrupt, expand, image_noise, log_snr, rates
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.vp import from_betas, vp_cosine, vp_linear, vp_sigmoid, zero_terminal_snr
from tests.analytic import PROCESSES, compiled, gaussian

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'iddpm_terms.npz'
SPACES = {
  'eps': parameterisation.eps,
  'x0': parameterisation.x0,
  'v': parameterisation.v,
  'velocity': parameterisation.velocity,
  'preconditioned': parameterisation.preconditioned,
}
ENDS = jnp.array([0, 1e-7, 1 - 1e-7, 1], jnp.float32)

every_process = pytest.mark.parametrize('process', PROCESSES.values(), ids=PROCESSES.keys())
every_name = pytest.mark.parametrize('name', PROCESSES)
every_space = pytest.mark.parametrize('space', SPACES)


def _pairs(n):
  """Data, noise and a network's output for n images."""
  return jnp.asarray(np.random.default_rng(0).normal(size=(3, 24, 2, 3, 1)), jnp.float32)[:, :n]


def _schedule(process, t):
  """alpha, sigma and network_time, as numpy."""
  return compiled(lambda t: (process.alpha(t), process.sigma(t), process.network_time(t)), jnp.float32(t))


# Processes


@every_process
def test_schedule_goes_from_data_to_noise(process):
  a, s, network_time = _schedule(process, np.linspace(0, 1, 4001))
  assert a[0] == 1
  assert s[0] == 0
  assert np.all(np.diff(a) < 0)
  assert np.all(np.diff(s) >= 0)
  assert 0 <= a[-1] < 0.01
  assert s[-1] > 0.9999
  assert np.all(np.diff(network_time) >= 0)
  assert network_time[-1] == (process.num_steps - 1 if process.num_steps else 1000)


@pytest.mark.parametrize('name', [name for name in PROCESSES if name.startswith('vp')])
def test_vp_preserves_variance(name):
  a, s, _ = _schedule(PROCESSES[name], np.linspace(0, 1, 4001))
  np.testing.assert_allclose(a**2 + s**2, 1, atol=3e-7)


def _iddpm_cosine_betas(num_steps):
  def bar(t):
    return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

  return np.array([min(1 - bar((i + 1) / num_steps) / bar(i / num_steps), 0.999) for i in range(num_steps)])


def _sigmoid_betas(n):
  """diffusers' and GeoDiff's 'sigmoid'."""
  return 1e-4 + (0.02 - 1e-4) / (1 + np.exp(-np.linspace(-6, 6, n)))


@pytest.mark.parametrize(
  ('process', 'betas'),
  [
    (vp_linear(1000), np.load(GOLDEN)['betas']),
    (vp_linear(4000), np.linspace(0.25 * 1e-4, 0.25 * 0.02, 4000)),
    (vp_cosine(1000), _iddpm_cosine_betas(1000)),
    (vp_sigmoid(1000), _sigmoid_betas(1000)),
    (vp_cosine(4000), _iddpm_cosine_betas(4000)),
    (from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
  ],
  ids=['ddpm', 'linear_4000', 'iddpm', 'sigmoid', 'cosine_4000', 'stable_diffusion'],
)
def test_discrete_process_has_the_papers_numbers(process, betas):
  num_steps = len(betas)
  t, bar = np.float32((np.arange(num_steps) + 1) / num_steps), np.cumprod(1 - betas)
  a, s, network_time = _schedule(process, t)
  np.testing.assert_array_equal(network_time, np.arange(num_steps))
  np.testing.assert_allclose(a, np.sqrt(bar), rtol=2e-6)
  np.testing.assert_allclose(s, np.sqrt(1 - bar), rtol=2e-6)
  # The beta that a step adds, out of differences of a float32 table.
  step = compiled(partial(posterior.large_variance, process), t[1:], t[:-1])
  np.testing.assert_allclose(step, betas[1:], rtol=1e-3 if num_steps == 1000 else 5e-3)


def test_zero_terminal_snr_leaves_nothing_of_the_data():
  """Lin et al. 2023, Algorithm 1, whose first alpha stays and whose last is 0."""
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
  process, before = from_betas(zero_terminal_snr(betas)), from_betas(betas)
  k = np.float32([1, 500, 999, 999.5, 1000]) / 1000
  alpha, sigma, _ = _schedule(process, k)
  root = np.sqrt(np.cumprod(1 - betas))
  want = (root - root[-1]) * root[0] / (root[0] - root[-1])
  np.testing.assert_allclose(alpha, [want[0], want[499], want[998], want[998] / 2, 0], rtol=2e-4)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-5)
  np.testing.assert_allclose(alpha[0], _schedule(before, k)[0][0], rtol=1e-6)
  assert sigma[-1] == 1
  with pytest.raises(ValueError, match='zero terminal SNR'):
    parameterisation.eps(process)
  x_t, v = jnp.ones((1, 2)), jnp.full((1, 2), 0.3)
  prediction = parameterisation.v(process).predict(v, x_t, jnp.ones(1))
  np.testing.assert_allclose(prediction.x0, -v)


@pytest.mark.parametrize(
  ('discrete', 'continuous'), [(vp_linear(20_000), vp_linear()), (vp_cosine(20_000), vp_cosine())]
)
def test_continuous_vp_is_the_limit_of_many_steps(discrete, continuous):
  got, want = compiled(lambda t: (log_snr(discrete, t), log_snr(continuous, t)), jnp.linspace(0.01, 0.99, 99))
  np.testing.assert_allclose(got, want, atol=1e-2)


def test_a_discrete_process_is_interpolated_between_its_steps():
  process = from_betas(np.linspace(0.01, 0.3, 10))
  a, _, network_time = _schedule(process, [0.30, 0.33, 0.40])
  np.testing.assert_allclose(np.log(a[1]), 0.7 * np.log(a[0]) + 0.3 * np.log(a[2]), rtol=1e-5)
  np.testing.assert_allclose(network_time, [2, 2.3, 3], rtol=1e-5)


def test_impossible_betas_are_refused():
  with pytest.raises(ValueError, match=r'betas go from 0\.01 to 2 in 10 steps'):
    vp_linear(10)


@every_process
def test_rates_are_the_slopes_of_the_schedule(process):
  h = 1e-3

  def slopes(t):
    return [(f(t + h) - f(t - h)) / (2 * h) for f in (process.alpha, process.sigma)]

  got, want = compiled(lambda t: (rates(process, t), slopes(t)), jnp.linspace(0.1, 0.9, 33) + 0.00037)
  np.testing.assert_allclose(got, want, rtol=0.01, atol=2e-3)


def test_noise_of_an_image_does_not_depend_on_its_batch():
  keys = jax.random.split(jax.random.key(0), 5)
  np.testing.assert_array_equal(image_noise(keys, (2, 2, 1))[3:4], image_noise(keys[3:4], (2, 2, 1)))


# Parameterisations

INSIDE = jnp.linspace(0.06, 0.75, 24)


@functools.cache
def _conversions(name):
  """Every conversion of a process, in one compiled program: space -> what the tests below look at."""
  process = PROCESSES[name]

  def run():
    return {space: _conversions_of(process, SPACES[space](process)) for space in SPACES}

  return compiled(run)


def _conversions_of(process, p):
  x0, eps, output = _pairs(len(INSIDE))
  x_t = corrupt(process, x0, eps, INSIDE)
  perfect = p.predict(p.target(x0, eps, INSIDE), x_t, INSIDE)
  wrong = p.predict(output, x_t, INSIDE)
  scale = 1 + jnp.abs(wrong.x0) + jnp.abs(wrong.eps)
  at_ends = _pairs(len(ENDS))[:2]

  def total(output):
    prediction = p.predict(output, corrupt(process, *at_ends, ENDS), ENDS)
    return prediction.x0.sum() + prediction.eps.sum(), prediction

  gradient, at_end = jax.grad(total, has_aux=True)(output[: len(ENDS)])
  return {
    'perfect': (perfect.x0 - x0, perfect.eps - eps),
    'consistency': (corrupt(process, wrong.x0, wrong.eps, INSIDE) - x_t) / scale,
    'round_trip': (p.target(wrong.x0, wrong.eps, INSIDE) - output) / scale,
    'ends': (at_end.x0, at_end.eps, gradient, p.target(*at_ends, ENDS)),
  }


@every_name
@every_space
def test_a_perfect_output_recovers_data_and_noise(name, space):
  for error in _conversions(name)[space]['perfect']:
    assert np.max(np.abs(error)) < 1e-5


@every_name
@every_space
def test_any_output_is_consistent_with_x_t_and_survives_the_round_trip(name, space):
  assert np.max(np.abs(_conversions(name)[space]['consistency'])) < 2e-6
  assert np.max(np.abs(_conversions(name)[space]['round_trip'])) < 1e-5


@every_name
@every_space
def test_conversions_and_their_gradients_are_finite_at_the_ends(name, space):
  for value in _conversions(name)[space]['ends']:
    assert np.isfinite(value).all()


@pytest.mark.parametrize('process', [vp_linear(1000), vp_cosine(1000)])
def test_the_first_of_a_discrete_process_s_steps_has_its_own_coefficients(process):
  """Between the last two of a cosine's steps alpha falls by 30: a time a little before 1 has another."""
  t = jnp.ones(1)
  got = parameterisation.eps(process).predict(jnp.zeros(1), t, t).x0
  np.testing.assert_allclose(got, 1 / process.alpha(t), rtol=1e-5)


@every_process
def test_velocity_is_the_time_derivative_of_x_t(process):
  t, h = jnp.linspace(0.1, 0.8, 24) + 0.00037, 5e-4
  x0, eps, _ = _pairs(len(t))
  target = parameterisation.velocity(process).target
  error = compiled(
    lambda: target(x0, eps, t) - (corrupt(process, x0, eps, t + h) - corrupt(process, x0, eps, t - h)) / (2 * h)
  )
  assert np.max(np.abs(error)) < 0.03


@every_process
def test_score_of_a_gaussian(process):
  t = jnp.linspace(0.05, 0.95, 24)
  x_t, mean, variance = _pairs(24)[0], 0.3, 0.5

  def scores():
    prediction = gaussian(process, mean, variance)(x_t, t, {})
    log_density = lambda x: _log_gaussian(x, process, mean, variance, t)  # noqa: E731
    return parameterisation.score(process, prediction, t), jax.grad(log_density)(x_t)

  np.testing.assert_allclose(*compiled(scores), rtol=1e-4, atol=1e-5)


def _log_gaussian(x, process, mean, variance, t):
  d = expand(process.alpha(t) ** 2 * variance + process.sigma(t) ** 2, x)
  return (-((x - expand(process.alpha(t), x) * mean) ** 2) / (2 * d)).sum()


def test_a_learned_variance_is_the_second_half_of_the_channels():
  process = PROCESSES['rectified_flow']
  output = jax.random.normal(jax.random.key(0), (2, 4, 4, 6))
  x_t, t, p = jnp.zeros((2, 4, 4, 3)), jnp.full(2, 0.5), parameterisation.eps
  learned = parameterisation.learned_variance(p)
  prediction = parameterisation.denoiser(lambda x, t, cond: output, process, learned)(x_t, t, {})
  np.testing.assert_array_equal(prediction.eps, output[..., :3])
  np.testing.assert_array_equal(prediction.variance, output[..., 3:])
  with pytest.raises(ValueError, match='3 channels for images of 3, and 6 are wanted'):
    parameterisation.denoiser(lambda x, t, cond: x, process, learned)(x_t, t, {})
  with pytest.raises(ValueError, match='6 channels for images of 3, and 3 are wanted'):
    parameterisation.denoiser(lambda x, t, cond: output, process, p)(x_t, t, {})


def test_a_denoiser_gives_the_network_its_own_time_and_float32_back():
  process, seen = vp_linear(1000), []

  def apply(x, t, cond):
    seen.append((t, cond))
    return x.astype(jnp.bfloat16)

  denoise = parameterisation.denoiser(apply, process, parameterisation.eps)
  prediction = denoise(jnp.ones((2, 1, 1, 1)), jnp.array([0.001, 1.0]), {'label': jnp.array([3, 4])})
  np.testing.assert_array_equal(seen[0][0], [0, 999])
  np.testing.assert_array_equal(seen[0][1]['label'], [3, 4])
  assert prediction.x0.dtype == prediction.eps.dtype == jnp.float32


# The reverse step


def _reverse_step(process, x0, x_t, t, s):
  """The posterior's mean, its small, large and log small variances, as numpy."""

  def step(x0, x_t, t, s):
    variances = (posterior.small_variance, posterior.large_variance, posterior.log_small_variance)
    return posterior.posterior_mean(process, x0, x_t, t, s), *(f(process, t, s) for f in variances)

  return compiled(step, x0, x_t, jnp.float32(t), jnp.float32(s))


@every_process
def test_posterior_is_bayes_rule(process):
  t, s = np.array([0.2, 0.5, 0.9]), np.array([0.1, 0.45, 0.3])
  x0, x_t, _ = np.asarray(_pairs(3))
  (a_t, s_t, _), (a_s, s_s, _) = (np.float64(_schedule(process, time)) for time in (t, s))
  a_ts = a_t / a_s
  added = s_t**2 - a_ts**2 * s_s**2
  precision = 1 / s_s**2 + a_ts**2 / added
  wide = lambda c: c.reshape(-1, 1, 1, 1)  # noqa: E731
  mean = (wide(a_s / s_s**2) * x0 + wide(a_ts / added) * x_t) / wide(precision)
  got_mean, small, large, log_small = _reverse_step(process, x0, x_t, t, s)
  np.testing.assert_allclose(got_mean, mean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(small, 1 / precision, rtol=1e-4)
  np.testing.assert_allclose(large, added, rtol=1e-4)
  np.testing.assert_allclose(log_small, -np.log(precision), atol=1e-4)


@every_process
def test_the_last_step_lands_on_x0(process):
  x0, x_t, _ = _pairs(2)
  mean, small, _, log_small = _reverse_step(process, x0, x_t, [0.01, 1.0], [0.0, 0.0])
  np.testing.assert_allclose(mean, x0, atol=1e-6)
  np.testing.assert_array_equal(small, 0)
  assert np.isfinite(log_small).all()


def test_posterior_agrees_with_iddpm():
  golden = np.load(GOLDEN)
  process, bar = vp_linear(1000), np.cumprod(1 - golden['betas'])
  t = np.float32((golden['t'] + 1) / 1000)
  nhwc = {k: golden[k].transpose(0, 2, 3, 1) for k in ('x0', 'noise', 'xt', 'pred_xstart', 'mean')}
  got = compiled(partial(corrupt, process), nhwc['x0'], nhwc['noise'], t)
  np.testing.assert_allclose(got, nhwc['xt'], atol=1e-6)
  mean = _reverse_step(process, nhwc['pred_xstart'], nhwc['xt'], t, t - 1e-3)[0]
  np.testing.assert_allclose(mean, nhwc['mean'], atol=5e-6)
  # IDDPM's posterior_log_variance_clipped, at every step.
  grid = np.float32(np.arange(1001) / 1000)
  variance = golden['betas'] * (1 - np.append(1, bar[:-1])) / (1 - bar)
  clipped = np.log(np.append(variance[1], variance[1:]))
  got = compiled(partial(posterior.log_small_variance, process), grid[1:], grid[:-1])
  np.testing.assert_allclose(got, clipped, atol=1e-3)


def test_a_respaced_step_equals_the_betas_that_iddpm_recomputes():
  k = np.linspace(0, 999, 50).round().astype(int)
  bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[k]
  t = np.float32((k + 1) / 1000)
  got = compiled(partial(posterior.large_variance, vp_linear(1000)), t[1:], t[:-1])
  np.testing.assert_allclose(got, 1 - bar[1:] / bar[:-1], rtol=1e-4)


# Time samplers


@pytest.mark.parametrize('draw', [times.independent, times.stratified])
def test_time_samplers_have_their_distributions(draw):
  key, n = jax.random.key(3), 4000
  samplers = times.uniform(draw=draw), times.logit_normal(-0.4, 1.2, draw=draw), times.discrete(10, draw=draw)
  u, t, k = compiled(lambda key: [sampler(key, n) for sampler in samplers], key)
  k = k * 10 - 1
  for value in (u, t, k):
    assert value.shape == (n,)
    assert value.dtype == jnp.float32
  assert stats.kstest(u, 'uniform').pvalue > 0.01
  assert stats.kstest(np.log(t) - np.log1p(-t), stats.norm(-0.4, 1.2).cdf).pvalue > 0.01
  np.testing.assert_allclose(k, np.round(k), atol=1e-5)
  assert stats.chisquare(np.bincount(np.round(k).astype(int), minlength=10)).pvalue > 0.01


def test_stratified_times_hit_every_stratum_once():
  u = compiled(lambda key: times.stratified(key, 64), jax.random.key(0))
  np.testing.assert_array_equal(np.sort(np.floor(64 * u)), np.arange(64))


def test_discrete_times_are_on_the_grid_exactly():
  k = compiled(lambda key: vp_linear(1000).network_time(times.discrete(1000)(key, 20_000)), jax.random.key(0))
  assert set(np.unique(k)) == set(range(1000))


def test_shift_scales_the_noise_to_data_ratio():
  t = np.linspace(0, 1, 11)
  shifted = times.shift(t, 3.0)
  assert shifted[0] == 0
  assert shifted[-1] == 1
  np.testing.assert_allclose(shifted[1:-1] / (1 - shifted[1:-1]), 3 * t[1:-1] / (1 - t[1:-1]), rtol=1e-5)
  key = jax.random.key(0)
  np.testing.assert_array_equal(times.shifted(times.uniform(), 3.0)(key, 8), times.shift(times.uniform()(key, 8), 3.0))
  for refused in (partial(times.shift, t), partial(times.shifted, times.uniform())):
    with pytest.raises(ValueError, match='by a factor of 0; it must be above 0'):
      refused(0.0)


@pytest.mark.parametrize('parameterise', [parameterisation.x0, parameterisation.eps, parameterisation.velocity])
def test_a_margin_is_within_time(parameterise):
  with pytest.raises(ValueError, match=r'the margin is 2; it is a distance from an end of time, in \[0, 0.5\)'):
    parameterise(rectified_flow(), margin=2.0)


# Weightings

ON = {
  'x0': lambda w: w,
  'eps': weighting.on_eps,
  'v': weighting.on_v,
  'velocity': weighting.on_velocity,
  'preconditioned': weighting.on_preconditioned,
}
WEIGHTINGS = {
  'snr': weighting.snr,
  'truncated_snr': weighting.truncated_snr,
  'min_snr': weighting.min_snr(5.0),
}


@functools.cache
def _weighted(name):
  """(space, weighting) -> (its loss there, its loss on x0, its values at the ends), in one compiled program."""
  process, t = PROCESSES[name], jnp.linspace(0.06, 0.9, 24)
  x0, eps, output = _pairs(len(t))

  def run():
    prediction = parameterisation.x0(process).predict(output, corrupt(process, x0, eps, t), t)
    on_x0 = ((output - x0) ** 2).mean((1, 2, 3))
    result = {}
    for space, on in ON.items():
      p = SPACES[space](process)
      error = ((p.target(*prediction[:2], t) - p.target(x0, eps, t)) ** 2).mean((1, 2, 3))
      for weight, w in WEIGHTINGS.items():
        result[space, weight] = on(w)(process, t) * error, w(process, t) * on_x0, on(w)(process, ENDS)
    return result

  return compiled(run)


@every_name
@pytest.mark.parametrize('weight', WEIGHTINGS)
@every_space
def test_a_weighting_is_the_same_loss_in_every_space(name, weight, space):
  there, on_x0, at_ends = _weighted(name)[space, weight]
  np.testing.assert_allclose(there, on_x0, rtol=2e-3)
  assert np.isfinite(at_ends).all()


def test_weightings_have_their_papers_values():
  t, five = jnp.array([0.1, 0.5, 0.8]), weighting.min_snr(5.0)
  members = (weighting.snr, weighting.truncated_snr, five, weighting.on_eps(five), weighting.uniform)
  of = lambda process, members: compiled(lambda: [weight(process, t) for weight in members])  # noqa: E731
  snr, truncated, min_snr, min_snr_on_eps, uniform = of(PROCESSES['rectified_flow'], members)
  np.testing.assert_allclose(snr, [81, 1, 0.0625], rtol=1e-5)
  np.testing.assert_allclose(truncated, [81, 1, 1], rtol=1e-5)
  np.testing.assert_allclose(min_snr, [5, 1, 0.0625], rtol=1e-5)
  np.testing.assert_allclose(min_snr_on_eps, [5 / 81, 1, 1], rtol=1e-5)
  np.testing.assert_array_equal(uniform, 1)
  on_v, snr = of(PROCESSES['vp_cosine'], (weighting.on_v(five), weighting.snr))
  np.testing.assert_allclose(on_v, np.minimum(snr, 5) / (snr + 1), rtol=1e-4)
