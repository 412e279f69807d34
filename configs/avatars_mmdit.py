"""An MMDiT draws avatars from words by rectified flow, as Stable Diffusion 3 is trained: small, in pixels.

  jaxgen train --config avatars_mmdit
  jaxgen sample --run runs/avatars_mmdit --prompt 'a smiling woman with red hair and glasses' --out woman.png

Text and image have weights of their own and meet in one softmax; the network predicts the velocity, and times are
logit-normal, shifted towards noise (Esser et al. 2024). The text encoder learns with the network. Data, text encoder
and measurements are those of avatars, which has diffusion and a PixArt.

Result: not run.
"""

import numpy as np
from ml_collections import ConfigDict

from jaxgen.experiment import Experiment
from jaxgen.models.mmdit import MMDiT
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.objectives.conditioning import trained_text
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.heun import heun
from jaxgen.samplers.sampler import Sampler
from jaxgen.text_parts import avatars_experiment, captioned, split_of, vocabulary


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'avatars32',  # in the package; or avatars, larger, after `jaxgen data prepare avatars`
      'resolution': 0,  # side of the images; 0 for images as they are
      'steps': 1100,
      'batch_size': 64,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'patch': 4, 'depth': 5, 'width': 128, 'heads': 2, 'qk_norm': True},
      'text': {'width': 128, 'depth': 1, 'heads': 4},  # the text encoder
      'times': {'mean': 0.0, 'shift': 3.0},  # logit-normal, then shifted towards noise
      'drop_rate': 0.1,
      'optimizer': {'muon': 0.02, 'adam': 2e-3, 'b2': 0.95, 'warmup': 20},
      'ema': 0.995,
      'clip_norm': 1.0,
      'sampling': {'steps': 12, 'shift': 3.0, 'scale': 2.0, 'batch_size': 64},
      'samples': {'every': 550, 'prompts': 8, 'per_prompt': 8},
      'fid': {'every': 1100, 'num_samples': 256, 'batch_size': 16},  # num_samples=0 for none
      'held_out': {'every': 550, 'num': 128, 'batch_size': 64},  # the loss on pictures of the test split
      'attributes': {'every': 550, 'number': 128},
      'log_every': 50,
      'checkpoint': {'every': 550, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  dataset = split_of(c, 'train')
  words = vocabulary(dataset)
  data = captioned(c, dataset, words)
  encoder = TextEncoder(vocabulary=words.size, pad=words.pad, **c.text)
  objective = diffusion(
    MMDiT(**c.model),
    rectified_flow(time_scale=1000),
    shape=data.spec['image'].shape[1:],
    parameterisation=parameterisation.velocity,
    times=times.shifted(times.logit_normal(c.times.mean, draw=times.stratified), c.times.shift),
    sampler=Sampler(heun, np.asarray(times.shift(grids.uniform(c.sampling.steps), c.sampling.shift))),
    guide=(classifier_free(c.sampling.scale), clip()),
    conditioner=trained_text(encoder, length=words.length, drop_rate=c.drop_rate),
  )
  protocol = {
    'sampler': f'Heun, {c.sampling.steps} steps, clipped to [-1, 1]',
    'guidance': c.sampling.scale,
  }
  return avatars_experiment(c, objective, data=data, words=words, protocol=protocol)
