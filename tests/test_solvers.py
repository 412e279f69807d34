"""The solvers of higher order and the SDE's, on a mixture of Gaussians whose flow is known in closed form."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.processes import parameterisation
from jaxgen.processes.process import Process
from jaxgen.samplers import dpm_solver, exponential, grids
from jaxgen.samplers import edm as edm_module
from jaxgen.samplers import euler_maruyama as euler_maruyama_module
from jaxgen.samplers.clipping import clipped
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.ddim_inversion import ddim_inversion
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.dpm_solver import dpm_multistep, dpm_singlestep
from jaxgen.samplers.edm import edm
from jaxgen.samplers.euler_maruyama import euler_maruyama
from jaxgen.samplers.noise import step_noise
from jaxgen.samplers.unipc import unipc
from tests.analytic import PROCESSES, gaussian, mixture, mixture_flow

VE = Process(alpha=jnp.ones_like, sigma=lambda t: 1.0 * t, network_time=lambda t: t)
MEANS, VARIANCE = (-0.8, 0.5), 0.05
ORDERS = {  # name: solver, order; UniPC's is that of its corrector
  **{
    f'{name}_{of_space}_{order}': (partial(solver, order=order, space=space), order)
    for name, solver in (('multistep', dpm_multistep), ('singlestep', dpm_singlestep))
    for of_space, space in (('data', exponential.data), ('noise', exponential.noise))
    for order in (1, 2, 3)
  },
  **{
    f'unipc_{b.__name__}_{order}': (partial(unipc, order=order, second=b, lower_final_below=0), order + 1)
    for b in (exponential.bh1, exponential.bh2)
    for order in (1, 2, 3)
  },
  'edm_still': (partial(edm, churn=0.0), 2),
  'multistep_data_2_exact': (partial(dpm_multistep, order=2, second=None), 2),
}


PAIRS = [  # every solver on one process, and the higher orders on all
  (solver, process)
  for solver, (_, order) in ORDERS.items()
  for process in ('vp_linear', 'vp_cosine', 'rectified_flow', 've')
  if process == 'rectified_flow' or (order >= 3 and solver.split('_')[1] not in ('noise', 'bh1'))
]


def _uneven(steps, length, start, end):
  """Uniform in time, so uneven in log SNR; two short steps first, since multistep solvers start with lower orders.

  Stands still before, so that grids of different steps are of one length and one program.
  """
  grid = start + (end - start) * np.arange(steps + 1) / steps
  short = (grid[1] - start) / steps
  return np.concatenate([np.full(length - steps, start), [start + short, start + 2 * short], grid[1:]])


@pytest.mark.parametrize(('solver', 'process'), PAIRS)
def test_the_error_falls_with_the_order_of_the_method(solver, process):
  process = VE if process == 've' else PROCESSES[process]
  solver, order = ORDERS[solver]
  start, end, x = 0.8, 0.2, np.linspace(-1.5, 1.5, 32).reshape(-1, 1)
  with jax.enable_x64(True):
    run = jax.jit(lambda x, grid: solver(mixture(process, MEANS, VARIANCE), process, x, grid))
    exact = mixture_flow(process, MEANS, VARIANCE, x, start, end)
    error = lambda n: np.sqrt(np.mean((run(x, _uneven(n, 81, start, end)) - exact) ** 2))  # noqa: E731
    measured = np.log2(error(40) / error(80))
  assert abs(measured - order) < 0.3, f'order {measured:.2f}'


# Against the papers' own updates, step by step


def _weighted(nodes, differences, b):
  if len(nodes) < 2:
    return sum(0.5 * d for d in differences)
  weights = np.linalg.solve(np.vander(nodes, increasing=True).T, b[: len(nodes)])
  return sum(w * d for w, d in zip(weights, differences, strict=True))


def _published(process, order, x, grid, denoise, b_of, lower_final):
  """UniPC as its paper's algorithms 7 and 8 have it: in float64, with a linear system for the weights."""
  alpha, sigma = (np.asarray(f(jnp.asarray(grid)), np.float64) for f in (process.alpha, process.sigma))
  l, f = np.log(alpha / sigma), [denoise(x, grid[0])]
  for i in range(len(grid) - 1):
    h, p = l[i + 1] - l[i], min(order, i + 1)
    p = min(p, len(grid) - 1 - i) if lower_final else p
    phi = [-np.expm1(-h)]  # m_0, m_1/h ... of Eq. 5
    for k in range(1, p + 1):
      phi.append(1 / math.factorial(k) * h**k - phi[-1])
    ratios = [(l[i - j] - l[i]) / h for j in range(1, p)]
    b = np.array([math.factorial(n) * phi[n] / h**n for n in range(1, p + 1)]) / b_of(h, phi[0])
    differences = [(f[i - j] - f[i]) / r for j, r in zip(range(1, p), ratios, strict=True)]
    base = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * phi[0] * f[i]
    scale = alpha[i + 1] * b_of(h, phi[0])
    predicted = base + scale * _weighted(ratios, differences, b)
    if i == len(grid) - 2:
      return predicted
    f.append(denoise(predicted, grid[i + 1]))
    x = base + scale * _weighted([*ratios, 1.0], [*differences, f[-1] - f[i]], b)


@pytest.mark.parametrize(('order', 'lower_final'), [(1, True), (2, True), (3, True), (3, False)])
def test_unipc_follows_the_published_updates(order, lower_final):
  process, grid, x = PROCESSES['vp_linear'], grids.uniform(7)[:-1], np.linspace(-1.5, 1.5, 8).reshape(-1, 1)
  with jax.enable_x64(True):
    smooth = lambda x_t, t: jnp.sin(2 * x_t) + t  # noqa: E731
    of_x0 = parameterisation.x0(process)
    denoise = lambda x_t, t, cond: of_x0.predict(smooth(x_t, t.reshape(-1, 1)), x_t, t)  # noqa: E731
    for second, b_of in ((exponential.bh1, lambda h, m_0: h), (exponential.bh2, lambda h, m_0: m_0)):
      solver = partial(unipc, order=order, second=second, lower_final_below=7 * lower_final)
      got = jax.jit(lambda x: solver(denoise, process, x, jnp.asarray(grid, jnp.float64)))(jnp.asarray(x))  # noqa: B023
      want = _published(process, order, x, np.float64(grid), lambda x, t: np.asarray(smooth(x, t)), b_of, lower_final)
      np.testing.assert_allclose(got, want, atol=1e-10)


@pytest.mark.parametrize(('order', 'steps'), [(2, 5), (3, 5), (3, 12)])
def test_dpm_solver_ends_with_lower_orders_in_fewer_than_ten_steps(order, steps):
  """DPM-Solver++(2M) and (3M) of the authors' code to a last time with noise, in float64."""
  process, grid, x = PROCESSES['rectified_flow'], np.linspace(0.9, 0.1, steps + 1), np.linspace(-1.5, 1.5, 8)[:, None]
  with jax.enable_x64(True):
    of_x0 = parameterisation.x0(process)
    denoise = lambda x_t, t, cond: of_x0.predict(jnp.sin(2 * x_t), x_t, t)  # noqa: E731
    got = jax.jit(lambda x: dpm_multistep(denoise, process, x, grid, order=order))(jnp.asarray(x))
    alpha, sigma, past = 1 - grid, grid, []
    h = np.diff(np.log(alpha / sigma))
    for i in range(steps):
      p = min(order, i + 1, steps - i if steps < 10 else order)
      past = [np.sin(2 * x), *past][:order]
      x_s = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h[i]) * past[0]
      if p == 2:
        x_s -= alpha[i + 1] * np.expm1(-h[i]) / 2 * (past[0] - past[1]) * h[i] / h[i - 1]
      if p == 3:  # a parabola through three predictions; the released code halves its second derivative
        near, far = (h[i - 1] / h[i], (h[i - 1] + h[i - 2]) / h[i])
        d1, d2 = (past[0] - past[1]) / near, (past[0] - past[2]) / far
        slope, bend = (d1 * far - d2 * near) / (far - near), (d1 - d2) / (far - near) * -1
        m1 = np.expm1(-h[i]) / h[i] + 1
        m2 = 1 - 2 * m1 / h[i]
        x_s += alpha[i + 1] * (slope * m1 + bend * -m2)
      x = x_s
  np.testing.assert_allclose(got, x, atol=1e-10)


def test_the_sde_solver_of_order_2_follows_the_published_update():
  """SDE-DPM-Solver++(2M), Lu et al. 2022b, appendix A: with D = x0 + (x0 - x0 before)/(2 r)."""
  process, grid, x = PROCESSES['rectified_flow'], np.linspace(0.9, 0.1, 7), np.linspace(-1.5, 1.5, 8).reshape(-1, 1)
  keys = jax.random.split(jax.random.key(3), len(x))
  with jax.enable_x64(True):
    of_x0 = parameterisation.x0(process)
    denoise = lambda x_t, t, cond: of_x0.predict(jnp.sin(2 * x_t), x_t, t)  # noqa: E731
    got = dpm_multistep(denoise, process, jnp.asarray(x), grid, keys=keys, eta=1.0, lower_final_below=0)
    alpha, sigma = 1 - grid, grid
    h, before = np.diff(np.log(alpha / sigma)), None
    for i in range(len(h)):
      now = np.sin(2 * x)
      d = now if before is None else now + (now - before) * h[i] / (2 * h[i - 1])
      z = np.asarray(step_noise(keys, i, jnp.asarray(x)))
      x = sigma[i + 1] / sigma[i] * np.exp(-h[i]) * x + alpha[i + 1] * -np.expm1(-2 * h[i]) * d
      x, before = x + sigma[i + 1] * np.sqrt(-np.expm1(-2 * h[i])) * z, now
    np.testing.assert_allclose(got, x, atol=1e-10)


def test_phi_has_full_precision_in_float32():
  """phi_k(z) = int_0^1 e^((1 - u) z) u^(k-1)/(k-1)! du."""
  z = np.float32([-8, -2.1, -1.9, -0.1, -1e-4, 0, 1e-4, 0.1, 1.9, 2.1, 8])
  u, weight = np.polynomial.legendre.leggauss(40)
  u = (u + 1) / 2
  for k, got in enumerate(exponential.phis(jnp.asarray(z), 4)):
    want = np.exp(np.float64(z)[:, None] * (1 - u)) * u**k / math.factorial(k) @ weight / 2
    np.testing.assert_allclose(got, want, rtol=2e-6)


def test_a_start_at_almost_no_data_does_no_harm():
  """log(alpha/sigma) is -13.8 there, and float32 knows alpha to two digits."""
  process, x = PROCESSES['rectified_flow'], jnp.linspace(-1.5, 1.5, 32).reshape(-1, 1)
  solver = partial(dpm_singlestep, order=3, space=exponential.noise)
  run = jax.jit(lambda x, grid: solver(mixture(process, MEANS, VARIANCE), process, x, grid))
  grid, almost = grids.uniform(20), grids.uniform(20)
  almost[0] = 1 - 1e-6
  np.testing.assert_allclose(run(x, almost), run(x, grid), atol=2e-3)


# What every sampler is given


@pytest.mark.parametrize(
  'solver',
  [dpm_multistep, partial(dpm_singlestep, order=3), unipc, euler_maruyama, edm, partial(dpm_multistep, eta=0.5)],
)
def test_the_condition_and_the_clipping_reach_the_denoiser(solver):
  process, means, keys = (
    PROCESSES['rectified_flow'],
    jnp.array([-0.5, 0.1, 0.4]),
    jax.random.split(jax.random.key(0), 3),
  )
  denoise = gaussian(process, lambda cond: means[cond['label']], 0.0)
  cond, x = {'label': jnp.array([2, 0, 1])}, jnp.ones((3, 1))

  @jax.jit
  def run(x):
    run = lambda denoise: solver(denoise, process, x, grids.uniform(4), cond=cond, keys=keys)  # noqa: E731
    return run(denoise), run(clipped(denoise, process, 0.3))

  free, held = run(x)
  np.testing.assert_allclose(np.ravel(free), [0.4, -0.5, 0.1], atol=1e-6)
  np.testing.assert_allclose(np.ravel(held), [0.3, -0.3, 0.1], atol=1e-6)


# Solvers of the SDE, with noise that is known

MEAN = 0.4
SDE = {'euler_maruyama': (euler_maruyama, 1)}
SDE |= {f'sde_{order}': (partial(dpm_multistep, order=order, eta=1.0), order) for order in (1, 2)}


def _noise_of(monkeypatch, z):
  """Every step's noise is z(step, batch size)."""
  for module in (dpm_solver, euler_maruyama_module, edm_module):
    monkeypatch.setattr(
      module, 'step_noise', lambda keys, step, x: jnp.broadcast_to(z(step, len(x)).reshape(-1, 1), x.shape)
    )


@pytest.mark.parametrize('process', ['vp_linear', 'rectified_flow'])
@pytest.mark.parametrize('solver', SDE)
@pytest.mark.slow
def test_the_variance_of_the_sde_has_the_order_of_the_method(solver, process, monkeypatch):
  """For a Gaussian all is linear, so the variance is a sum over steps of what a unit of their noise does."""
  _noise_of(monkeypatch, lambda step, size: (jnp.arange(size) == step).astype(jnp.float64))
  (solver, order), process, (start, end) = SDE[solver], PROCESSES[process], (0.8, 0.2)

  def spread(t):
    t = jnp.float64(t)
    return float(jnp.sqrt(process.alpha(t) ** 2 * VARIANCE + process.sigma(t) ** 2))

  @jax.jit
  def run(x, grid, keys):
    return solver(gaussian(process, MEAN, VARIANCE), process, x, grid, keys=keys)

  def error(n):
    grid = _uneven(n, 161, start, end)
    noise, mean = np.zeros((len(grid), 1)), float(process.alpha(jnp.float64(start))) * MEAN
    x = np.concatenate([mean + noise, mean + np.array([[spread(start)]])])  # a step's noise each, none, and x's own
    keys = jax.random.split(jax.random.key(0), len(x))
    out = np.ravel(run(jnp.asarray(x), grid, keys))
    np.testing.assert_allclose(out[-2], process.alpha(jnp.float64(end)) * MEAN, atol=1e-2)
    return abs(np.sqrt(np.sum((out - out[-2]) ** 2)) / spread(end) - 1)

  with jax.enable_x64(True):
    measured = np.log2(error(80) / error(160))
  assert abs(measured - order) < 0.3, f'order {measured:.2f}'


@pytest.mark.parametrize('process', ['vp_linear', 'rectified_flow', 've'])
@pytest.mark.parametrize('z', [0.0, 1.0])
@pytest.mark.slow
def test_edm_raises_the_noise_and_follows_the_flow_down(process, z, monkeypatch):
  """Against Algorithm 2 in float64 with the closed-form flow in place of Heun's step, on y = x/alpha."""
  start, end, low, high = (8.0, 2.0, 4.1, 7.3) if process == 've' else (0.8, 0.2, 0.83, 2.1)
  process, churn, s_noise = PROCESSES.get(process, VE), 6.0, 1.1
  x = np.linspace(-1.5, 1.5, 8).reshape(-1, 1)

  def exact(grid, z):
    alpha, nus = process.alpha(grid), process.sigma(grid) / process.alpha(grid)
    y = x / alpha[0]
    for nu, nu_s in itertools.pairwise(nus):
      gamma = min(churn / (len(grid) - 1), 2**0.5 - 1) if low <= nu <= high else 0
      raised = nu * (1 + gamma)
      y = y + s_noise * (raised**2 - nu**2) ** 0.5 * z
      y = MEAN + ((VARIANCE + nu_s**2) / (VARIANCE + raised**2)) ** 0.5 * (y - MEAN)
    return alpha[-1] * y

  def error(n):
    each = z / n**0.5  # so that the noise of all steps has one size
    _noise_of(monkeypatch, lambda step, size: jnp.full(size, each))
    grid, keys = jnp.linspace(start, end, n + 1), jax.random.split(jax.random.key(0), len(x))
    options = {'churn': churn, 'nu_min': low, 'nu_max': high, 'noise': s_noise}
    got = edm(gaussian(process, MEAN, VARIANCE), process, jnp.asarray(x), grid, keys=keys, **options)
    return np.sqrt(np.mean((got - exact(grid, each)) ** 2))

  with jax.enable_x64(True):
    measured = np.log2(error(80) / error(160))
  assert abs(measured - 2) < 0.3, f'order {measured:.2f}'


def test_edm_churns_within_the_levels_that_it_is_given():
  process, keys = PROCESSES['rectified_flow'], jax.random.split(jax.random.key(0), 4)
  denoise, x, grid = gaussian(process, MEAN, VARIANCE), jnp.ones((4, 1)), grids.uniform(4)
  run = lambda grid=grid, **kwargs: edm(denoise, process, x, grid, keys=keys, **kwargs)  # noqa: E731
  still, first = run(churn=0.0), np.float32([0.8, 0.4])
  np.testing.assert_allclose(run(first), run(first, churn=0.0), atol=1e-6)  # no noise above that of times[0]
  np.testing.assert_array_equal(run(nu_min=0.4, nu_max=0.9), still)  # sigma/alpha is 3, 1, 1/3
  assert np.abs(run(nu_min=0.9, nu_max=1.1) - still).max() > 1e-2


@pytest.mark.parametrize('process', ['vp_cosine_1000', 'rectified_flow'])
def test_the_sde_solver_of_order_1_is_ddpm(process):
  process, keys = PROCESSES[process], jax.random.split(jax.random.key(1), 16)
  x = jax.random.normal(jax.random.key(0), (16, 1))
  run = lambda solver: jax.jit(  # noqa: E731
    lambda x: solver(mixture(process, MEANS, VARIANCE), process, x, grids.uniform(10), keys=keys)
  )(x)
  np.testing.assert_allclose(run(partial(dpm_multistep, order=1, eta=1.0)), run(ddpm), atol=2e-5)


# Inversion


@pytest.mark.parametrize('process', ['vp_linear', 'rectified_flow'])
def test_inversion_finds_the_noise_of_an_image(process):
  process = PROCESSES[process]
  denoise, x = mixture(process, MEANS, VARIANCE), jnp.linspace(-1.2, 0.9, 32).reshape(-1, 1)

  def error(steps, repeats):
    grid = grids.quadratic(steps)
    back = lambda x: ddim_inversion(denoise, process, x, grid, repeats=repeats)  # noqa: E731
    return np.abs(jax.jit(lambda x: ddim(denoise, process, back(x), grid))(x) - x).max()

  coarse, fine, exact = error(50, 0), error(200, 0), error(50, 20)
  assert exact < 1e-4
  assert 0.6 < np.log2(coarse / fine) / 2 < 1.4
  assert coarse > 20 * exact


def test_inversion_does_not_ask_a_model_of_x0_for_the_noise_of_an_image_that_has_none():
  """At t = 0 its small errors are divided by next to no noise."""
  process, x = PROCESSES['rectified_flow'], jnp.linspace(-1.2, 0.9, 32).reshape(-1, 1)
  exact, of_x0 = mixture(process, MEANS, VARIANCE), parameterisation.x0(process)
  denoise = lambda x, t, cond: of_x0.predict(exact(x, t, cond).x0 + 0.01, x, t)  # noqa: E731
  noise = jax.jit(lambda x: ddim_inversion(denoise, process, x, grids.uniform(20)))(x)
  assert np.abs(noise).max() < 5


# What is refused


def test_impossible_options_are_refused():
  process, x, grid = PROCESSES['rectified_flow'], jnp.ones((2, 1)), grids.uniform(2)
  denoise = gaussian(process, MEAN, VARIANCE)
  for solver in (dpm_multistep, dpm_singlestep, unipc):
    with pytest.raises(ValueError, match='got order=4'):
      solver(denoise, process, x, grid, order=4)
  with pytest.raises(ValueError, match=r'eta is 1\.0 with another space than data'):
    dpm_multistep(denoise, process, x, grid, space=exponential.noise, eta=1.0)
  with pytest.raises(ValueError, match='eta is 2'):
    dpm_multistep(denoise, process, x, grid, eta=2.0)
  with pytest.raises(ValueError, match='repeats is -1'):
    ddim_inversion(denoise, process, x, grid, repeats=-1)
  with pytest.raises(ValueError, match='churn is -1'):
    edm(denoise, process, x, grid, churn=-1.0)
