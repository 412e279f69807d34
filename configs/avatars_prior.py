"""DALL-E 2's prior on avatars: from the words of a caption to an embedding of the picture.

  jaxgen train --config avatars_prior

Embeddings are the logits of the classifier of attributes that comes with jaxgen. A causal transformer predicts x0 of
the standardised embeddings (Ramesh et al. 2022). Pictures come from avatars_unclip, given the embedding:
jaxgen/generation/cascade.py. Measured in the loop: the share of attributes that embeddings say as their captions do.
Differs from the paper: the embeddings are not CLIP's, and the text encoder learns with the prior.

Result: not run.
"""

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen import ema, sharding
from jaxgen.config_parts import run_options, warmup_cosine
from jaxgen.data.tokenizers.tokenizer import encode_all
from jaxgen.evaluators.avatars import avatar_attributes
from jaxgen.evaluators.generate import make_generate
from jaxgen.experiment import Experiment
from jaxgen.models.prior import Prior
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.objectives.conditioning import trained_text
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.embedded import embedded, statistics
from jaxgen.optimizers import kernels
from jaxgen.pretrained import attribute_classifier
from jaxgen.processes import parameterisation, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler
from jaxgen.text_parts import captioned, split_of, vocabulary


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'avatars32',
      'resolution': 0,
      'steps': 2000,
      'batch_size': 128,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'depth': 4, 'width': 128, 'heads': 2},
      'text': {'width': 128, 'depth': 1, 'heads': 4},
      'measured': 2048,  # pictures whose embeddings give mean and deviation
      'drop_rate': 0.1,
      'optimizer': {'rate': 1e-3, 'weight_decay': 0.05, 'warmup': 100},
      'ema': 0.995,
      'clip_norm': 1.0,
      'sampling': {'steps': 25, 'scale': 2.0, 'clip': 5.0, 'batch_size': 128},
      'attributes': {'every': 500, 'number': 512},
      'log_every': 50,
      'checkpoint': {'every': 500, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  mesh, dataset = sharding.make_mesh(**c.mesh), split_of(c, 'train')
  words = vocabulary(dataset)
  data = captioned(c, dataset, words)
  net, params = attribute_classifier.read()
  embed, frozen = attribute_classifier.embedding(net), {'embedder': params}
  seen = np.stack([dataset.read(i)['image'] for i in range(min(c.measured, dataset.num_examples))])
  found = np.asarray(jax.jit(embed)(frozen, seen))
  mean, std = statistics(found)
  encoder = TextEncoder(vocabulary=words.size, pad=words.pad, **c.text)
  objective = diffusion(
    Prior(**c.model),
    vp_cosine(),
    shape=(1, found.shape[1]),
    parameterisation=parameterisation.x0,
    times=times.uniform(draw=times.stratified),
    sampler=Sampler(ddim, np.asarray(grids.uniform(c.sampling.steps))),
    guide=(classifier_free(c.sampling.scale), clip(c.sampling.clip)),
    limit=None,
    conditioner=trained_text(encoder, length=words.length, drop_rate=c.drop_rate),
  )
  objective = embedded(objective, embed, mean=mean, std=std)
  rate = warmup_cosine(c.optimizer.rate, warmup=c.optimizer.warmup, steps=c.steps)
  adam = optax.adamw(rate, b2=0.98, weight_decay=c.optimizer.weight_decay, mask=kernels)

  def attributes_of(rows: np.ndarray) -> np.ndarray:
    return attribute_classifier.load()(rows) if rows.ndim == 4 else attribute_classifier.most_likely(rows)

  measured = avatar_attributes(
    make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size),
    attributes_of,
    mesh=mesh,
    splits={name: split_of(c, name) for name in ('test', 'seen')},
    encode=lambda prompts: {'text': encode_all(words, prompts.texts)},
    **c.attributes,
  )
  return Experiment(
    objective=objective,
    evaluators=measured,
    optimizers={'net': adam, 'text': adam},
    averages={name: ema.Average(name, ema.warmup(c.ema)) for name in ('net', 'text')},
    data=data,
    mesh=mesh,
    frozen=frozen,
    tokenize=lambda texts: {'text': encode_all(words, texts)},
    **run_options(c),
  )
