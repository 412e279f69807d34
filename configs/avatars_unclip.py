"""DALL-E 2's decoder on avatars: from the embedding of a picture, and its words, to the picture.

  jaxgen train --config avatars_unclip

Embeddings are those of avatars_prior. They are added to time's embedding and read as four more tokens of text; each of
both is dropped in training, so that a picture's own embedding makes variations of it (generation/cascade.py). Grids and
FID here take embeddings of real pictures. Ramesh et al. 2022.

Result: not run.
"""

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxgen.experiment import Experiment
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.models.unclip import EmbeddingProjection
from jaxgen.models.unet import UNet
from jaxgen.objectives.conditioning import trained_text
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.embedded import EMBEDDING, beside, with_embedding
from jaxgen.pretrained import attribute_classifier
from jaxgen.processes import parameterisation, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.dpm_solver import dpm_multistep
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler
from jaxgen.text_parts import avatars_experiment, captioned, split_of, vocabulary


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'avatars32',
      'resolution': 0,
      'steps': 1100,
      'batch_size': 64,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'width': 32, 'multipliers': (1, 2, 2), 'blocks': 1, 'attention': (1, 2), 'head_size': 32, 'groups': 8},
      'text': {'width': 128, 'depth': 1, 'heads': 4},
      'tokens': 4,  # tokens that an embedding becomes
      'shift': 4.0,  # shift of times towards noise
      'margin': 0.05,
      'drop_rate': 0.07,  # probability that the embedding, the text, or both are dropped
      'optimizer': {'muon': 0.02, 'adam': 2e-3, 'b2': 0.95, 'warmup': 20},
      'ema': 0.995,
      'clip_norm': 1.0,
      'sampling': {'steps': 16, 'shift': 1.5, 'scale': 2.0, 'batch_size': 64},
      'samples': {'every': 550, 'prompts': 8, 'per_prompt': 8},
      'fid': {'every': 1100, 'num_samples': 256, 'batch_size': 16},
      'attributes': {'every': 550, 'number': 128},
      'log_every': 50,
      'checkpoint': {'every': 550, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  dataset = split_of(c, 'train')
  words = vocabulary(dataset)
  data = captioned(c, dataset, words)
  net, params = attribute_classifier.read()
  embed, frozen = attribute_classifier.embedding(net), {'embedder': params}
  encoder = TextEncoder(vocabulary=words.size, pad=words.pad, **c.text)
  objective = diffusion(
    UNet(**c.model, joined=True),
    vp_cosine(),
    shape=data.spec['image'].shape[1:],
    parameterisation=lambda process: parameterisation.x0(process, margin=c.margin),
    loss_in=parameterisation.v,
    times=times.shifted(times.uniform(draw=times.stratified), c.shift),
    sampler=Sampler(dpm_multistep, np.asarray(times.shift(grids.uniform(c.sampling.steps), c.sampling.shift))),
    guide=(classifier_free(c.sampling.scale), clip()),
    conditioner=with_embedding(
      trained_text(encoder, length=words.length),
      EmbeddingProjection(width=c.text.width, time=4 * c.model.width, tokens=c.tokens),
      features=net.num_classes,
      text_width=c.text.width,
      drop_rate=c.drop_rate,
    ),
  )
  run = jax.jit(embed)
  return avatars_experiment(
    c,
    beside(objective, {EMBEDDING: embed}),
    data=data,
    words=words,
    trains=('net', 'text', EMBEDDING),
    beside=lambda images: {EMBEDDING: np.asarray(run(frozen, images))},
    frozen=frozen,
    protocol={
      'embeddings': 'of real pictures',
      'sampler': f'DPM-Solver++ 2M, {c.sampling.steps} steps, clipped to [-1, 1]',
      'guidance': c.sampling.scale,
    },
  )
