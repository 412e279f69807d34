"""Schedulers' configurations, as diffusers keeps them, and the processes they mean.

  load(folder) -> Schedule        process(schedule), parameterisation(schedule)        save(folder, schedule)

A scheduler of diffusers is a process, what a network predicts about it, and a sampler, in one. The first two are read;
the sampler is the caller's choice here. beta is `linear`, or linear in its square root (`scaled_linear`, Rombach et al.
2022), or IDDPM's cosine (`squaredcos_cap_v2`); flow matching's sigma is t.
"""

import os
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxgen.pretrained import folder
from jaxgen.processes import parameterisation as parameterisations
from jaxgen.processes.parameterisation import Parameterisation
from jaxgen.processes.process import Process
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.vp import from_betas, vp_cosine

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
  'UniPCMultistepScheduler',
)
FLOW = ('FlowMatchEulerDiscreteScheduler', 'FlowMatchHeunDiscreteScheduler')
_PREDICTIONS = {'epsilon': parameterisations.eps, 'sample': parameterisations.x0, 'v_prediction': parameterisations.v}


class Schedule(NamedTuple):
  """What a scheduler's configuration says of the process, under diffusers' names.

  Attributes:
    num_train_timesteps: T.
    beta_schedule: 'linear', 'scaled_linear', 'squaredcos_cap_v2', or 'flow'.
    beta_start, beta_end: of the first two.
    prediction_type: 'epsilon', 'sample' or 'v_prediction'; 'flow_prediction' of a flow.
    scheduler: the class's name.
    shift: of a flow's times.
  """

  num_train_timesteps: int = 1000
  beta_schedule: str = 'linear'
  beta_start: float = 1e-4
  beta_end: float = 0.02
  prediction_type: str = 'epsilon'
  scheduler: str = 'DDIMScheduler'
  shift: float = 1.0


STABLE_DIFFUSION = Schedule(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)


def load(path: str | os.PathLike) -> Schedule:
  """The schedule of a scheduler's folder.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it is of another scheduler, or asks for what jaxgen has not.
  """
  config = folder.config(path, classes=DIFFUSION + FLOW, name=FILE)
  kind, steps = config['_class_name'], config.get('num_train_timesteps', 1000)
  if kind in FLOW:
    folder.expect(config, {'use_dynamic_shifting': False, 'invert_sigmas': False})
    return Schedule(steps, 'flow', 0.0, 0.0, 'flow_prediction', kind, config.get('shift', 1.0))
  folder.expect(config, {'trained_betas': None, 'rescale_betas_zero_snr': False})
  schedule = Schedule(
    steps,
    config.get('beta_schedule', 'linear'),
    config.get('beta_start', 1e-4),
    config.get('beta_end', 0.02),
    config.get('prediction_type', 'epsilon'),
    kind,
  )
  process(schedule), parameterisation(schedule)  # say now what is not known
  return schedule


def save(path: str | os.PathLike, schedule: Schedule) -> None:
  """Writes a folder that `load` and diffusers read."""
  config: dict[str, Any] = {'_class_name': schedule.scheduler, 'num_train_timesteps': schedule.num_train_timesteps}
  if schedule.beta_schedule == 'flow':
    config |= {'shift': schedule.shift}
  else:
    names = ('beta_schedule', 'beta_start', 'beta_end', 'prediction_type')
    config |= {name: getattr(schedule, name) for name in names}
  if schedule.scheduler in ('DDIMScheduler', 'DDPMScheduler'):
    config |= {'clip_sample': False}  # of latents; diffusers clips by default
  folder.write_config(epath.Path(path) / FILE, config)


def process(schedule: Schedule) -> Process:
  steps, start, end = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end
  match schedule.beta_schedule:
    case 'linear':
      return from_betas(np.linspace(start, end, steps))
    case 'scaled_linear':
      return from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2)
    case 'squaredcos_cap_v2':
      return vp_cosine(steps)
    case 'flow':
      return rectified_flow()
  raise ValueError(
    f'beta_schedule {schedule.beta_schedule!r} is not known; wanted linear, scaled_linear, squaredcos_cap_v2 or flow'
  )


def parameterisation(schedule: Schedule) -> Parameterisation:
  made = process(schedule)
  if schedule.beta_schedule == 'flow':
    return parameterisations.velocity(made)
  if schedule.prediction_type not in _PREDICTIONS:
    raise ValueError(f'prediction_type {schedule.prediction_type!r} is not known; wanted {", ".join(_PREDICTIONS)}')
  return _PREDICTIONS[schedule.prediction_type](made)
