"""The solvers of higher order and the SDE's, on a mixture of Gaussians whose flow is known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.processes.process import Process
from jaxgen.samplers import exponential
from jaxgen.samplers.dpm_solver import dpm_multistep, dpm_singlestep
from tests.analytic import PROCESSES, mixture, mixture_flow

VE = Process(alpha=jnp.ones_like, sigma=lambda t: 1.0 * t, network_time=lambda t: t)
MEANS, VARIANCE = (-0.8, 0.5), 0.05
ORDERS = {  # name: solver, order
  **{
    f'{name}_{of_space}_{order}': (partial(solver, order=order, space=space), order)
    for name, solver in (('multistep', dpm_multistep), ('singlestep', dpm_singlestep))
    for of_space, space in (('data', exponential.data), ('noise', exponential.noise))
    for order in (1, 2, 3)
  },
  'multistep_data_2_exact': (partial(dpm_multistep, order=2, second=None), 2),
}


PAIRS = [  # every solver on one process, and the higher orders on all
  (solver, process)
  for solver, (_, order) in ORDERS.items()
  for process in ('vp_linear', 'vp_cosine', 'rectified_flow', 've')
  if process == 'rectified_flow' or (order == 3 and solver.split('_')[1] == 'data')
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
