"""What diffusers' schedulers do with one denoiser and one noise: the numbers in tests/golden/samplers.npz.

  python tests/diffusers_samplers.py tests/golden/samplers.npz

needs torch and diffusers, of which 0.42.1 made the file. The network is v = 0.8 sin(2 x + time/200), whatever a
scheduler calls time; each array is what the network saw at its calls, one after the other, and at last the sample.
"""

import sys

import diffusers
import numpy as np
import torch

STEPS = 10
SHAPE = (2, 2, 3, 2)
VP = {'beta_start': 1e-4, 'beta_end': 0.02, 'num_train_timesteps': 1000, 'timestep_spacing': 'trailing'}
V = VP | {'prediction_type': 'v_prediction'}
SCHEDULERS = {
  'ddpm': diffusers.DDPMScheduler(**V, clip_sample=False),
  'ddim': diffusers.DDIMScheduler(**V, clip_sample=False),
  'ddim_noisy': diffusers.DDIMScheduler(**V, clip_sample=False),
  'euler': diffusers.EulerDiscreteScheduler(**V),
  'heun': diffusers.HeunDiscreteScheduler(**V),
  'dpm_2m': diffusers.DPMSolverMultistepScheduler(**V, final_sigmas_type='zero'),
  'dpm_sde_2m': diffusers.DPMSolverMultistepScheduler(**V, final_sigmas_type='zero', algorithm_type='sde-dpmsolver++'),
  'unipc': diffusers.UniPCMultistepScheduler(**V, final_sigmas_type='zero'),
  'unipc_3': diffusers.UniPCMultistepScheduler(**V, final_sigmas_type='zero', solver_order=3),
  'deis_3': diffusers.DEISMultistepScheduler(**V, solver_order=3),
  'lms': diffusers.LMSDiscreteScheduler(**V),
  'ddim_clipped': diffusers.DDIMScheduler(**V, clip_sample=True),
  'lcm': diffusers.LCMScheduler(**V, beta_schedule='linear', clip_sample=False),
  'flow': diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
  'consistency': diffusers.CMStochasticIterativeScheduler(clip_denoised=False),
}


def main(path: str) -> None:
  draw = np.random.default_rng(0)
  start, noise = draw.standard_normal(SHAPE, np.float32), draw.standard_normal((STEPS, *SHAPE), np.float32)
  arrays = {'start': start, 'noise': noise}
  for name, scheduler in SCHEDULERS.items():
    arrays[name] = follow(name, scheduler, torch.tensor(start), torch.tensor(noise))
  arrays['flow_times'] = SCHEDULERS['flow'].sigmas.numpy()
  arrays['lcm_times'] = np.append((SCHEDULERS['lcm'].timesteps.numpy() + 1) / 1000, 0).astype(np.float32)
  arrays['consistency_sigmas'] = SCHEDULERS['consistency'].sigmas.numpy()
  np.savez(path, **arrays)


def follow(name: str, scheduler, start: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
  """Inputs of the network and the sample."""
  scheduler.set_timesteps(STEPS)
  drawn = iter(noise)
  module = sys.modules[type(scheduler).__module__]
  module.randn_tensor = lambda *args, **kwargs: next(drawn)
  x = start * scheduler.init_noise_sigma if name == 'consistency' else start
  if name in ('euler', 'heun', 'lms'):
    x = start * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
  seen = []
  for time in scheduler.timesteps:
    scale = getattr(scheduler, 'scale_model_input', lambda x, time: x)
    seen.append(scale(x, time))
    v = 0.8 * torch.sin(2 * seen[-1] + time / 200)
    options = {'eta': 1.0, 'variance_noise': next(drawn)} if name == 'ddim_noisy' else {}
    x = scheduler.step(v.float(), time, x, **options).prev_sample
  return np.stack([np.asarray(image, np.float32) for image in (*seen, x)])


if __name__ == '__main__':
  main(sys.argv[1])
