"""Samplers follow diffusers' schedulers call by call; tests/diffusers_samplers.py tells how the numbers were made."""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from jaxgen.processes import parameterisation
from jaxgen.processes.edm import edm as edm_process
from jaxgen.processes.process import Prediction, Process, expand
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.vp import vp_linear
from jaxgen.samplers import consistency, ddim, ddpm, dpm_solver, exponential, grids
from jaxgen.samplers.clipping import clipped
from jaxgen.samplers.edm import edm
from jaxgen.samplers.euler import euler
from jaxgen.samplers.heun import heun
from jaxgen.samplers.lms import lms
from jaxgen.samplers.unipc import unipc

GOLDEN = dict(np.load(pathlib.Path(__file__).parent / 'golden' / 'samplers.npz'))
VP, FLOW, EDM = vp_linear(1000), rectified_flow(), edm_process()
VE = Process(jnp.ones_like, lambda t: VP.sigma(t) / VP.alpha(t), VP.network_time)
TRAILING = grids.trailing(10, 1000)
STD = 0.5  # of the consistency model's data


def _network(x, time, cond):
  return 0.8 * jnp.sin(2 * x + expand(time, x) / 200)


def _denoise_ve(x, t, cond):
  """The VP network in VE's scale: x0 and eps are the same."""
  return parameterisation.denoiser(_network, VP, parameterisation.v)(expand(VP.alpha(t), x) * x, t, cond)


def _end_of_path(x, t, cond):
  """f of objectives/few_step/consistency.py, Eq. 1."""
  sigma = EDM.sigma(t)
  excess, norm = sigma - 0.002, jnp.sqrt(sigma**2 + STD**2)
  output = _network(x / expand(norm, x), 250 * jnp.log(sigma), cond)
  f = expand(STD**2 / (excess**2 + STD**2), x) * x + expand(STD * excess / norm, x) * output
  return Prediction(f, jnp.zeros_like(x))


def _times_of(sigmas):
  low, high = (sigma ** (1 / 7) for sigma in (0.002, 80.0))
  return np.clip((np.float64(sigmas) ** (1 / 7) - low) / (high - low), 0, 1).astype(np.float32)


ON_VP = VP, parameterisation.denoiser(_network, VP, parameterisation.v), TRAILING
CASES = {  # name: of diffusers' numbers, sampler, (process, denoiser, times)
  'ddpm': ('ddpm', ddpm.ddpm, ON_VP),
  'ddim': ('ddim', ddim.ddim, ON_VP),
  'ddim_noisy': ('ddim_noisy', partial(ddim.ddim, eta=1.0), ON_VP),
  'euler': ('euler', euler, ON_VP),
  'heun': ('heun', heun, (VE, _denoise_ve, TRAILING)),
  'edm_still': ('heun', partial(edm, churn=0.0), ON_VP),
  'dpm_2m': ('dpm_2m', dpm_solver.dpm_multistep, ON_VP),
  'dpm_sde_2m': ('dpm_sde_2m', partial(dpm_solver.dpm_multistep, eta=1.0), ON_VP),
  'unipc': ('unipc', unipc, ON_VP),
  'unipc_3': ('unipc_3', partial(unipc, order=3), ON_VP),
  'deis_3': (
    'deis_3',
    partial(dpm_solver.dpm_multistep, order=3, space=exponential.noise, second=None, lower_final_below=15),
    (*ON_VP[:2], np.append(TRAILING[:-1], np.float32(0.001))),
  ),
  'lms': ('lms', lms, ON_VP),
  'ddim_clipped': ('ddim_clipped', ddim.ddim, (VP, clipped(ON_VP[1], VP, keep_eps=True), TRAILING)),
  'lcm': (
    'lcm',
    consistency.consistency,
    (
      VP,
      parameterisation.denoiser(_network, VP, parameterisation.boundary(parameterisation.v)),
      GOLDEN['lcm_times'],
    ),
  ),
  'flow': (
    'flow',
    euler,
    (FLOW, parameterisation.denoiser(_network, FLOW, parameterisation.velocity), GOLDEN['flow_times']),
  ),
  'consistency': (
    'consistency',
    consistency.consistency,
    (EDM, _end_of_path, _times_of(GOLDEN['consistency_sigmas'])),
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_every_call_of_the_network_is_that_of_diffusers(case, monkeypatch):
  """Every step's noise is the file's."""
  golden, sampler, (process, denoise, times) = CASES[case]
  for module in (ddpm, ddim, dpm_solver, consistency):
    monkeypatch.setattr(module, 'step_noise', lambda keys, step, x: jnp.asarray(GOLDEN['noise'])[step])
  seen = []

  def watched(x, t, cond):
    io_callback(lambda x: seen.append(np.asarray(x)), None, _as_seen(process, x, t), ordered=True)
    return denoise(x, t, cond)

  start = process.sigma(jnp.float32(1)) * GOLDEN['start']
  if process is VE:
    start = GOLDEN['start'] / VP.alpha(jnp.float32(1))
  run = jax.jit(lambda x, keys: sampler(watched, process, x, times, keys=keys))
  sample = np.asarray(run(start, jax.random.split(jax.random.key(0), 2)))
  jax.effects_barrier()
  want = GOLDEN[golden]
  assert len(seen) == len(want) - 1
  for call, (got, wanted) in enumerate(zip([*seen, sample], want, strict=True)):
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0, err_msg=f'call {call}')


def _as_seen(process, x, t):
  """x in the scale in which the network sees it."""
  if process is VE:
    return expand(VP.alpha(t), x) * x
  return x / expand(jnp.sqrt(EDM.sigma(t) ** 2 + STD**2), x) if process is EDM else x
