"""Imagen on avatars: a base model of 32 pixels, and a model that enlarges its pictures to 64.

  jaxgen train --config avatars_imagen                                                              # the base
  jaxgen data prepare avatars                                                                       # 64 pixels
  jaxgen train --config avatars_imagen --config.stage=large --config.dataset=avatars                # 32 to 64

U-Nets read the words in the softmax of their own attention. The second model is an efficient U-Net: few features and no
attention where pixels are many, more where they are few; its small pictures have noise of a random level, a condition
(Saharia et al. 2022). Samples are thresholded dynamically. Grids and FID of the large stage start from small real
pictures; both in a row: jaxgen/generation/cascade.py. Differs from the paper: the text encoder learns with each model.

Result: not run.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxgen.experiment import Experiment, chosen
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.models.unet import UNet
from jaxgen.objectives.conditioning import trained_text
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.super_resolution import LEVEL, LOW, enlarging, reduced_by, super_resolution
from jaxgen.processes import parameterisation, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import threshold
from jaxgen.samplers.dpm_solver import dpm_multistep
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler
from jaxgen.text_parts import avatars_experiment, captioned, split_of, vocabulary

STAGES: Mapping[str, dict[str, Any]] = {
  'base': {'width': 32, 'multipliers': (1, 2, 2), 'attention': (1, 2)},
  'large': {'width': 16, 'multipliers': (1, 2, 4, 4), 'attention': (3,)},
}


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'stage': 'base',  # or large
      'dataset': 'avatars32',
      'resolution': 0,
      'steps': 1100,
      'batch_size': 64,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'blocks': 1, 'head_size': 32, 'groups': 8, 'joined': True},
      'text': {'width': 128, 'depth': 1, 'heads': 4},
      'shift': 4.0,  # shift of times towards noise
      'margin': 0.05,
      'most': 0.5,  # largest time of the noise in small pictures
      'level': 0.1,  # time of that noise when sampling
      'drop_rate': 0.1,
      'optimizer': {'muon': 0.02, 'adam': 2e-3, 'b2': 0.95, 'warmup': 20},
      'ema': 0.995,
      'clip_norm': 1.0,
      'sampling': {'steps': 16, 'shift': 1.5, 'scale': 2.0, 'quantile': 0.95, 'batch_size': 64},
      'samples': {'every': 550, 'prompts': 8, 'per_prompt': 8},
      'fid': {'every': 1100, 'num_samples': 256, 'batch_size': 16},
      'held_out': {'every': 550, 'num': 128, 'batch_size': 64},  # the loss on pictures of the test split
      'attributes': {'every': 550, 'number': 128},
      'log_every': 50,
      'checkpoint': {'every': 550, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  sizes, large = chosen(STAGES, c.stage, field='stage'), c.stage == 'large'
  dataset = split_of(c, 'train')
  words = vocabulary(dataset)
  data = captioned(c, dataset, words)
  shape, process = data.spec['image'].shape[1:], vp_cosine()
  encoder, low = TextEncoder(vocabulary=words.size, pad=words.pad, **c.text), shape[0] // 2
  conditioner = trained_text(encoder, length=words.length, drop_rate=c.drop_rate)
  if large:
    conditioner = enlarging(conditioner, process, size=shape[:2], low=low)
  objective = diffusion(
    UNet(**sizes, **c.model, level=large),
    process,
    shape=shape,
    parameterisation=lambda process: parameterisation.x0(process, margin=c.margin),
    loss_in=parameterisation.v,
    times=times.shifted(times.uniform(draw=times.stratified), c.shift),
    sampler=Sampler(dpm_multistep, np.asarray(times.shift(grids.uniform(c.sampling.steps), c.sampling.shift))),
    guide=(classifier_free(c.sampling.scale), threshold(quantile=c.sampling.quantile)),
    conditioner=conditioner,
  )
  if large:
    objective = super_resolution(objective, low=low, most=c.most)

  def beside(images: np.ndarray) -> dict[str, np.ndarray]:
    if not large:
      return {}
    small = np.asarray(reduced_by(jnp.asarray(images), (low, low)))
    return {LOW: small, LEVEL: np.full(len(images), c.level, np.float32)}

  protocol = {
    'sampler': f'DPM-Solver++ 2M, {c.sampling.steps} steps, dynamic thresholding at {c.sampling.quantile}',
    'guidance': c.sampling.scale,
    **({'small pictures': f'real, with noise of time {c.level}'} if large else {}),
  }
  return avatars_experiment(c, objective, data=data, words=words, beside=beside, protocol=protocol)
