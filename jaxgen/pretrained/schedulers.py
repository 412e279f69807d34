"""Schedulers' configurations in diffusers' form: the process of each, and the prediction type of its network.

  load(folder) -> Schedule        process(schedule), parameterisation(schedule)        save(folder, schedule)

A scheduler of diffusers is a process, what a network predicts about it, and a sampler, in one; the sampler is made by
sampling.py. beta is `linear`, or linear in its square root (`scaled_linear`, Rombach et al. 2022), or IDDPM's cosine
(`squaredcos_cap_v2`); flow matching's sigma is t. Zero terminal SNR (Lin et al. 2023) moves and scales sqrt(alpha bar),

  (1)  a_k' = a_0 (a_k - a_T) / (a_0 - a_T),   a = sqrt(alpha bar);   the last alpha bar is 2^-24, as in diffusers
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgen.pretrained import folder
from jaxgen.processes import parameterisation as parameterisations
from jaxgen.processes.parameterisation import Parameterisation
from jaxgen.processes.process import Process
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.vp import from_betas, vp_cosine
from jaxgen.typing import Float

FILE = 'scheduler_config.json'
DIFFUSION = (
  'DDIMScheduler',
  'DDPMScheduler',
  'DPMSolverMultistepScheduler',
  'EulerAncestralDiscreteScheduler',
  'EulerDiscreteScheduler',
  'HeunDiscreteScheduler',
  'LMSDiscreteScheduler',
  'PNDMScheduler',
  'UnCLIPScheduler',
  'UniPCMultistepScheduler',
)
FLOW = ('FlowMatchEulerDiscreteScheduler', 'FlowMatchHeunDiscreteScheduler')
_PREDICTIONS = {'epsilon': parameterisations.eps, 'sample': parameterisations.x0, 'v_prediction': parameterisations.v}
_ROUND_TIMES = ('DPMSolverMultistepScheduler', 'UniPCMultistepScheduler')  # these round the times of Karras's levels
_COSINE = 'squaredcos_cap_v2'
_SMALLEST = 2.0**-24  # alpha bar of Eq. 1's last time
_DEFAULTS = {
  'num_train_timesteps': 1000,
  'beta_schedule': 'linear',
  'beta_start': 1e-4,
  'beta_end': 0.02,
  'prediction_type': 'epsilon',
  'shift': 1.0,
}


class Schedule(NamedTuple):
  """The configuration of a scheduler, under diffusers' names.

  Attributes:
    num_train_timesteps: T.
    beta_schedule: 'linear', 'scaled_linear', 'squaredcos_cap_v2', or 'flow'.
    beta_start, beta_end: first and last beta of the first two.
    prediction_type: 'epsilon', 'sample' or 'v_prediction'; 'flow_prediction' of a flow.
    scheduler: the class's name.
    shift: shift of a flow's times.
    more: the configuration's other entries, such as `timestep_spacing`; sampling.py reads them.
  """

  num_train_timesteps: int = 1000
  beta_schedule: str = 'linear'
  beta_start: float = 1e-4
  beta_end: float = 0.02
  prediction_type: str = 'epsilon'
  scheduler: str = 'DDIMScheduler'
  shift: float = 1.0
  more: Mapping[str, Any] = {}

  @property
  def is_flow(self) -> bool:
    return self.beta_schedule == 'flow'


STABLE_DIFFUSION = Schedule(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)


def load(path: str | os.PathLike) -> Schedule:
  """The schedule of a scheduler's folder.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it is of another scheduler, or asks for what jaxgen has not.
  """
  return read(folder.config(path, classes=DIFFUSION + FLOW, name=FILE))


def read(config: folder.Config) -> Schedule:
  """The schedule of a configuration; errors as of `load`."""
  more = {name: value for name, value in config.items() if name not in _DEFAULTS and not name.startswith('_')}
  defaults = _DEFAULTS | ({'beta_schedule': _COSINE} if config['_class_name'] == 'UnCLIPScheduler' else {})
  named: dict[str, Any] = defaults | {name: value for name, value in config.items() if name in _DEFAULTS}
  if config['_class_name'] in FLOW:
    folder.expect(config, {'invert_sigmas': False})
    named |= {'beta_schedule': 'flow', 'beta_start': 0.0, 'beta_end': 0.0, 'prediction_type': 'flow_prediction'}
  schedule = Schedule(scheduler=config['_class_name'], more=more, **named)
  process(schedule), parameterisation(schedule)  # say now what is not known
  return schedule


def save(path: str | os.PathLike, schedule: Schedule) -> None:
  """Writes a folder that `load` and diffusers read."""
  folder.write_config(epath.Path(path) / FILE, configuration(schedule))


def configuration(schedule: Schedule) -> folder.Config:
  """The inverse of `read`."""
  names = (
    ('shift',) if schedule.is_flow else ('beta_schedule', 'beta_start', 'beta_end', 'prediction_type')
  )  # a scheduler has entries of one kind
  config: folder.Config = {'_class_name': schedule.scheduler, 'num_train_timesteps': schedule.num_train_timesteps}
  if schedule.scheduler == 'UnCLIPScheduler':
    names = ('beta_schedule', 'prediction_type')
  if schedule.scheduler in ('DDIMScheduler', 'DDPMScheduler'):
    config |= {'clip_sample': False}  # latents are not clipped; diffusers clips by default
  return config | {name: getattr(schedule, name) for name in names} | dict(schedule.more)


def process(schedule: Schedule) -> Process:
  """The process, whose network times are whole numbers where diffusers rounds them."""
  if schedule.is_flow:
    return rectified_flow(time_scale=schedule.num_train_timesteps)
  cosine = schedule.beta_schedule == _COSINE
  plain = schedule.more.get('trained_betas') is None and not schedule.more.get('rescale_betas_zero_snr')
  made = vp_cosine(schedule.num_train_timesteps) if cosine and plain else from_betas(betas(schedule))
  if schedule.more.get('use_karras_sigmas') and schedule.scheduler in _ROUND_TIMES and not cosine:
    return made._replace(network_time=lambda t: jnp.round(made.network_time(t)))
  return made


def betas(schedule: Schedule) -> Float[np.ndarray, ' k']:
  """The variance that each of T steps adds, float64."""
  steps, start, end = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end
  if schedule.more.get('trained_betas') is not None:
    made = np.asarray(schedule.more['trained_betas'], np.float64)
  elif schedule.beta_schedule == 'linear':
    made = np.linspace(start, end, steps)
  elif schedule.beta_schedule == 'scaled_linear':
    made = np.linspace(start**0.5, end**0.5, steps) ** 2
  elif schedule.beta_schedule == _COSINE:
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    made = np.minimum(1 - f[1:] / f[:-1], 0.999)
  else:
    raise ValueError(
      f'beta_schedule {schedule.beta_schedule!r} is not known; wanted linear, scaled_linear, squaredcos_cap_v2 or flow'
    )
  return _zero_terminal(made) if schedule.more.get('rescale_betas_zero_snr') else made


def _zero_terminal(betas: Float[np.ndarray, ' k']) -> Float[np.ndarray, ' k']:
  """Eq. 1."""
  a = np.sqrt(np.cumprod(1 - betas))
  alpha_bar = (a[0] * (a - a[-1]) / (a[0] - a[-1])) ** 2
  alpha_bar[-1] = _SMALLEST
  return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def parameterisation(schedule: Schedule) -> Parameterisation:
  """The parameterisation of the network for `process(schedule)`."""
  return parameterise(schedule)(process(schedule))


def parameterise(schedule: Schedule) -> parameterisations.Parameterise:
  """The same for any process."""
  if schedule.is_flow:
    return parameterisations.velocity
  if schedule.prediction_type not in _PREDICTIONS:
    raise ValueError(f'prediction_type {schedule.prediction_type!r} is not known; wanted {", ".join(_PREDICTIONS)}')
  made = _PREDICTIONS[schedule.prediction_type]
  if schedule.more.get('variance_type') in ('learned', 'learned_range'):
    return parameterisations.learned_variance(made)
  return made
