"""The sampler of a scheduler's configuration: solver, times, first noise and clipping, as diffusers has them.

  sampling(schedule, steps=30) -> Sampling

A process with T steps is visited at k, its times are (k + 1)/T:

  (1)  linspace   k = i (T - 1)/(n - 1), or n of n + 1 such points, without the last (DPM-Solver, UniPC)
  (2)  leading    k = i floor(T/n) + offset, or i floor(T/(n + 1)) + offset (DPM-Solver, UniPC)
  (3)  trailing   k = round(T - i T/n) - 1
  (4)  Karras     levels sigma/alpha of EDM's grid between the ends of all k, or between those of Eqs. 1 to 3 (Euler)

and the last step goes to t = 0, or where the configuration asks for it to t = 1/T, the first of the process. A flow
goes by t = 1 - i (1 - 1/T)/(n - 1), or t = 1 - i/n where its pipeline says so, shifted (processes/times.py, Eq. 6) by a
factor of the configuration or of the number of tokens, and at last to 0.

What a configuration asks for beyond that is named in one warning. Differs from diffusers: DDIM and PNDM there go from
k to k - floor(T/n) whatever the grid, so that for a T that n does not divide, a step of Eqs. 1 and 3 does not end where
the next begins; here it does.
"""

import logging
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.pretrained import schedulers
from jaxgen.pretrained.schedulers import Schedule
from jaxgen.processes import posterior
from jaxgen.processes.times import shift
from jaxgen.samplers import exponential
from jaxgen.samplers.clipping import clip, threshold
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.ddpm import ddpm
from jaxgen.samplers.dpm_solver import dpm_multistep
from jaxgen.samplers.edm import edm
from jaxgen.samplers.euler import euler
from jaxgen.samplers.heun import heun
from jaxgen.samplers.lms import lms
from jaxgen.samplers.plms import plms
from jaxgen.samplers.sampler import Guide, Sampler, Solver
from jaxgen.samplers.unipc import unipc
from jaxgen.typing import Float

_ONE_POINT_MORE = ('DPMSolverMultistepScheduler', 'UniPCMultistepScheduler')  # Eqs. 1 and 2 with n + 1
_ENDS_AT_THE_FIRST = ('DDIMScheduler', 'PNDMScheduler')  # where set_alpha_to_one is False
_IN_SIGMA = (
  'EulerDiscreteScheduler',
  'HeunDiscreteScheduler',
  'LMSDiscreteScheduler',
  'EulerAncestralDiscreteScheduler',
)
_CLIPS = ('DDIMScheduler', 'DDPMScheduler', 'UnCLIPScheduler')  # by default
_SPACING = {  # diffusers' defaults, where they are not linspace
  'DDIMScheduler': 'leading',
  'DDPMScheduler': 'leading',
  'PNDMScheduler': 'leading',
}
_VARIANCES: dict[str, posterior.Variance] = {
  'fixed_small': posterior.small,
  'fixed_small_log': posterior.small,
  'fixed_large': posterior.large,
  'learned': posterior.learned,
  'learned_range': posterior.learned,
}
# Entries that are read here or in schedulers.py; of the others, the values that change nothing.
_KNOWN = {
  'base_image_seq_len', 'base_shift', 'clip_sample', 'clip_sample_range', 'dynamic_thresholding_ratio',
  'final_sigmas_type', 'max_image_seq_len', 'max_shift', 'rescale_betas_zero_snr', 'sample_max_value',
  'set_alpha_to_one', 'solver_order', 'steps_offset', 'thresholding', 'timestep_spacing', 'trained_betas',
  'use_dynamic_shifting', 'use_karras_sigmas', 'variance_type',
}  # fmt: skip
_EXPECTED = {
  'algorithm_type': ('dpmsolver++', 'sde-dpmsolver++', 'dpmsolver', 'sde-dpmsolver'),
  'disable_corrector': ([],),
  'euler_at_final': (False,),
  'flow_shift': (1.0, 1, None),
  'interpolation_type': ('linear',),
  'invert_sigmas': (False,),
  'lambda_min_clipped': (float('-inf'), '-Infinity', None),
  'lower_order_final': (True,),
  'predict_x0': (True,),
  'shift_terminal': (None, False),
  'sigma_max': (None,),
  'sigma_min': (None,),
  'skip_prk_steps': (True,),
  'solver_p': (None,),
  'solver_type': ('midpoint', 'heun', 'bh1', 'bh2'),
  'stochastic_sampling': (False,),
  'time_shift_type': ('exponential',),
  'timestep_type': ('discrete',),
  'use_beta_sigmas': (False, None),
  'use_exponential_sigmas': (False, None),
  'use_flow_sigmas': (False, None),
  'use_lu_lambdas': (False, None),
}


class Sampling(NamedTuple):
  """How a published model is sampled.

  Attributes:
    sampler: solver and times.
    noise_std: standard deviation of the first noise.
    guide: clipping or thresholding of x0, outside of guidance.
  """

  sampler: Sampler
  noise_std: float
  guide: tuple[Guide, ...] = ()


def sampling(
  schedule: Schedule, *, steps: int, tokens: int | None = None, even: bool = False, double_shift: bool = False
) -> Sampling:
  """The sampler of a schedule.

  Args:
    schedule: the scheduler's configuration.
    steps: number of steps; PLMS calls the network once more.
    tokens: number of tokens of an image, for a flow whose shift depends on it.
    even: a flow goes by t = 1 - i/n, as Flux's pipeline has it.
    double_shift: a flow's last time is shifted twice, as diffusers has it.

  Raises:
    ValueError: there are no such steps.
  """
  if not 1 <= steps <= schedule.num_train_timesteps:
    raise ValueError(f'{steps} sampling steps of a process with {schedule.num_train_timesteps}: use 1 to that many')
  if steps == 1 and schedule.scheduler == 'UnCLIPScheduler':
    raise ValueError('1 sampling step of an UnCLIPScheduler, which goes from the last time to the first; use 2 or more')
  ignored = _ignored(schedule)
  if ignored:
    logging.warning('of %s these are ignored: %s', schedule.scheduler, ', '.join(ignored))
  if schedule.is_flow:
    solve = heun if schedule.scheduler == 'FlowMatchHeunDiscreteScheduler' else euler
    return Sampling(Sampler(solve, _flow_times(schedule, steps, tokens, even, double_shift)), 1.0)
  process = schedulers.process(schedule)
  times = _times(schedule, steps)
  std = 1.0
  if schedule.scheduler in _IN_SIGMA and _spacing(schedule) != 'leading':
    std = float(process.sigma(jnp.float32(times[0])))
  return Sampling(Sampler(_solver(schedule), times), std, _clipping(schedule))


def _ignored(schedule: Schedule) -> list[str]:
  """Entries that are not understood, or whose value is not one that jaxgen has."""
  odd = {
    name: value
    for name, value in schedule.more.items()
    if (name not in _EXPECTED and name not in _KNOWN) or (name in _EXPECTED and value not in _EXPECTED[name])
  }
  return [f'{name}={value!r}' for name, value in odd.items()]


def _solver(schedule: Schedule) -> Solver:
  more = schedule.more
  match schedule.scheduler:
    case 'DDPMScheduler' | 'UnCLIPScheduler':
      kind = more.get('variance_type') or 'fixed_small'
      if kind not in _VARIANCES:
        raise ValueError(f'variance_type {kind!r} is not known; wanted one of {", ".join(_VARIANCES)}')
      return partial(ddpm, variance=_VARIANCES[kind])
    case 'DPMSolverMultistepScheduler':
      kind = more.get('algorithm_type', 'dpmsolver++')
      space = exponential.data if kind.endswith('++') else exponential.noise
      second = None if more.get('solver_type') == 'heun' else exponential.bh2
      eta = 1.0 if kind == 'sde-dpmsolver++' else 0.0
      return partial(dpm_multistep, order=more.get('solver_order', 2), space=space, eta=eta, second=second)
    case 'UniPCMultistepScheduler':
      second = exponential.bh1 if more.get('solver_type') == 'bh1' else exponential.bh2
      return partial(unipc, order=more.get('solver_order', 2), second=second)
    case 'EulerAncestralDiscreteScheduler':
      return partial(ddim, eta=1.0)
    case 'HeunDiscreteScheduler':
      return partial(edm, churn=0.0)
    case 'PNDMScheduler':
      return partial(plms, space=schedulers.parameterise(schedule))
    case 'LMSDiscreteScheduler':
      return lms
    case 'DDIMScheduler':
      return ddim
  return euler


def _clipping(schedule: Schedule) -> tuple[Guide, ...]:
  more, of_ddim = schedule.more, schedule.scheduler == 'DDIMScheduler'
  if more.get('thresholding'):
    quantile, most = more.get('dynamic_thresholding_ratio', 0.995), more.get('sample_max_value', 1.0)
    return (threshold(quantile=quantile, most=most, keep_eps=of_ddim),)
  if more.get('clip_sample', schedule.scheduler in _CLIPS):
    return (clip(more.get('clip_sample_range', 1.0), keep_eps=of_ddim),)
  return ()


def _spacing(schedule: Schedule) -> str:
  return schedule.more.get('timestep_spacing', _SPACING.get(schedule.scheduler, 'linspace'))


def _times(schedule: Schedule, steps: int) -> Float[np.ndarray, ' n']:
  """The times of a process with T steps, the last one included."""
  total, more = schedule.num_train_timesteps, schedule.more
  k = _visited(schedule, steps)
  if more.get('use_karras_sigmas'):
    ends = (k[0], k[-1]) if schedule.scheduler in _IN_SIGMA else (total - 1, 0)
    k = _karras(schedule, steps, *ends)
  first = schedule.scheduler in _ENDS_AT_THE_FIRST and not more.get(
    'set_alpha_to_one', schedule.scheduler == 'DDIMScheduler'
  )
  last = 1 / total if first or more.get('final_sigmas_type') == 'sigma_min' else 0.0
  return np.append((k + 1) / total, last).astype(np.float32)


def _visited(schedule: Schedule, steps: int) -> Float[np.ndarray, ' n']:
  """k of Eqs. 1 to 3, the largest first."""
  total, offset = schedule.num_train_timesteps, schedule.more.get('steps_offset', 0)
  points = steps + (schedule.scheduler in _ONE_POINT_MORE)
  match _spacing(schedule):
    case 'linspace':
      k = np.linspace(0, total - 1, points)
      k = (k if schedule.scheduler in _IN_SIGMA else k.round())[::-1]
    case 'leading':
      k = np.arange(points)[::-1] * (total // points) + offset
    case 'trailing':
      k = np.arange(total, 0, -total / steps).round() - 1
    case other:
      raise ValueError(f'timestep_spacing {other!r} is not known; wanted linspace, leading or trailing')
  return k[:steps].astype(np.float64)


def _karras(schedule: Schedule, steps: int, first: float, last: float, rho: float = 7.0) -> Float[np.ndarray, ' n']:
  """Eq. 4."""
  log_alpha_bar = np.cumsum(np.log1p(-schedulers.betas(schedule)))
  level = np.sqrt(np.expm1(-log_alpha_bar))
  high, low = (np.interp(k, np.arange(len(level)), level) ** (1 / rho) for k in (first, last))
  levels = np.linspace(high, low, steps) ** rho
  return np.interp(-np.log1p(levels**2), log_alpha_bar[::-1], np.arange(len(level), dtype=np.float64)[::-1])


def _flow_times(
  schedule: Schedule, steps: int, tokens: int | None, even: bool, double_shift: bool
) -> Float[np.ndarray, ' n']:
  more, total = schedule.more, schedule.num_train_timesteps
  factor = schedule.shift
  if more.get('use_dynamic_shifting'):
    if tokens is None:
      raise ValueError('this scheduler shifts times by the number of tokens of an image; give their number')
    factor = float(np.exp(dynamic_shift(more, tokens)))
  end = 1 / steps if even else 1 / total
  if double_shift and not even and not more.get('use_dynamic_shifting'):
    end = float(shift(np.asarray([end]), factor)[0])
  times = np.linspace(1.0, end, steps)
  return np.append(shift(times, factor), 0.0).astype(np.float32)


def dynamic_shift(more: Any, tokens: int) -> float:
  """mu, the logarithm of the factor, linear in the number of tokens."""
  low, high = more.get('base_image_seq_len', 256), more.get('max_image_seq_len', 4096)
  first, last = more.get('base_shift', 0.5), more.get('max_shift', 1.15)
  return first + (tokens - low) * (last - first) / (high - low)
