"""A small transformer learns to draw avatars from words: text to image from nothing, on two CPU cores.

  jaxgen train --config avatars
  jaxgen sample --prompt 'a smiling woman with red hair and glasses' --out woman.png

The captions are phrased anew at each step. A text encoder learns with the network, so nothing is downloaded. The
network reads its tokens by cross-attention (PixArt), or in one softmax with the image's (--config.network=mmdit, as in
Stable Diffusion 3). Cosine diffusion; the network predicts x0 and is judged on v. At t = 0.95 the noise shows the mean
color of a large area already, so the content is decided before: times are shifted towards noise, which takes the
share of right backgrounds after 20,000 pictures from 0.15 to 0.95.

A classifier that comes with jaxgen measures the share of attributes that samples show as their prompts say, for pairs
of words that are in no training picture (attributes_test) and for pairs that are (attributes_seen).

One's own captioned pictures: --config.dataset=folder:PATH --config.resolution=64. Larger avatars: `jaxgen data prepare
avatars`, then --config.dataset=avatars.

Result, seed 0: attributes_test 0.70, attributes_seen 0.71 (0.71, 0.72 with shorter rows of padding), where real
pictures have 0.99 and chance is 0.26 and 0.23.
Styles, backgrounds and colors of clothes are right in all samples, colors of hair in 0.95, of skin in 0.98, shapes of
hair in 0.60; mouths and eyes, a few pixels large, in 0.26 and 0.29. fid_256 122 against 1,000 pictures of `seen`.
12 to 16 minutes in a fresh clone, with installation and measurements, on two cores.
"""

import json
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen import ema, sharding
from jaxgen.config_parts import grid_and_fid, held_out, muon_and_adam, run_options, warmup_cosine
from jaxgen.data.captions import Describe, check_captions, lines, sample_captions, tokenized
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.avatars_captions import LENGTH, describe
from jaxgen.data.licences import allow
from jaxgen.data.loader import Loader
from jaxgen.data.sources import fits_in_memory, held_out_split, source
from jaxgen.data.tokenizers.tokenizer import Tokenizer, encode_all
from jaxgen.data.tokenizers.words import from_captions
from jaxgen.evaluators.avatars import avatar_attributes
from jaxgen.evaluators.generate import make_generate
from jaxgen.experiment import Experiment, chosen
from jaxgen.model_folder import resolved
from jaxgen.models.mmdit import MMDiT
from jaxgen.models.pixart import PixArt
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.models.unet import UNet
from jaxgen.objectives.base import Objective
from jaxgen.objectives.conditioning import Conditioner, trained_text
from jaxgen.objectives.diffusion.diffusion import Beside, diffusion
from jaxgen.pretrained import attribute_classifier
from jaxgen.processes import parameterisation, times
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.dpm_solver import dpm_multistep
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Guide, Sampler

NETWORKS = {'pixart': partial(PixArt, pooled=True, text_map=16, own_modulation=True), 'mmdit': MMDiT, 'unet': UNet}


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'avatars32',  # in the package; or avatars, or one's own captioned pictures: folder:PATH, ...
      'resolution': 0,  # side of the images; 0 for images as they are
      'licences': (),  # licences of the records to train on, such as ('CC0-1.0',); () for all
      'steps': 1100,
      'batch_size': 64,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'network': 'pixart',  # or mmdit, unet
      'model': {'patch': 4, 'depth': 5, 'width': 128, 'heads': 2},
      'text': {'width': 128, 'depth': 1, 'heads': 4},  # the text encoder
      'shift': 4.0,  # shift of times towards noise
      'margin': 0.05,  # times nearer to 0 than this count as this one where x0 is turned into v
      'drop_rate': 0.1,
      'optimizer': {'muon': 0.02, 'adam': 2e-3, 'b2': 0.95, 'warmup': 20},  # learning rates: of matrices, of the rest
      'ema': 0.995,
      'clip_norm': 1.0,
      'sampling': {'steps': 16, 'shift': 1.5, 'scale': 2.0, 'batch_size': 64},
      'samples': {'every': 550, 'prompts': 8, 'per_prompt': 8},  # prompts are captions of the test split
      'fid': {'every': 1100, 'num_samples': 256, 'batch_size': 16},  # num_samples=0 for none
      'reference': 'seen',  # the split of avatars that FID compares with
      'held_out': {'every': 550, 'num': 128, 'batch_size': 64},  # the loss on pictures of the test split
      'attributes': {'every': 550, 'number': 128},  # prompts of each split, where the dataset is avatars
      'log_every': 50,
      'checkpoint': {'every': 550, 'keep': 2},
    }
  )


def opened(c: ConfigDict, split: str) -> tuple[Dataset, Describe]:
  """A split of the dataset, and the function that describes its records."""
  dataset = source(c.dataset, split, resolution=c.resolution)
  if 'attributes' in dataset.read(0):
    return dataset, describe  # avatars: phrased anew from the attributes of the picture
  check_captions(dataset)
  return dataset, lines


def of_run(path: str) -> ConfigDict:
  """The config of a run of avatars or of a variant, or of a model that comes with jaxgen; the default where none is."""
  config, file = get_config(), pathlib.Path(resolved(path)).expanduser() / 'config.json'
  if file.is_file():
    kept = json.loads(file.read_text())['config']
    config.model = ConfigDict(kept['model'])  # which has the fields of its network
    config.update(kept)
  return config


def vocabulary(dataset: Dataset, described: Describe) -> Tokenizer:
  """A tokenizer of the words of a dataset's captions."""
  captions = sample_captions(dataset, number=4000, describe=described)
  return from_captions(captions, length=LENGTH if described is describe else None)


def denoising(
  c: ConfigDict,
  net: Any,
  *,
  shape: tuple[int, ...],
  guide: Sequence[Guide],
  conditioner: Conditioner,
  beside: Beside | None = None,
) -> Objective:
  """The process, loss, times and sampler of a config of avatars, for its network or a variant of it."""
  return diffusion(
    net,
    vp_cosine(),
    shape=shape,
    parameterisation=partial(parameterisation.x0, margin=c.margin),
    loss_in=parameterisation.v,
    times=times.shifted(times.uniform(draw=times.stratified), c.shift),
    sampler=Sampler(dpm_multistep, np.asarray(times.shift(grids.uniform(c.sampling.steps), c.sampling.shift))),
    guide=guide,
    conditioner=conditioner,
    beside=beside,
  )


def build(c: ConfigDict) -> Experiment:
  (dataset, described), (test, _) = opened(c, 'train'), opened(c, 'test')
  dataset = allow(dataset, c.licences) if c.licences else dataset
  words = vocabulary(dataset, described)
  data = Loader(
    dataset,
    batch_size=c.batch_size,
    seed=c.seed,
    transform=tokenized(words, describe=described),
    transform_name=words.fingerprint,
    cache=fits_in_memory(dataset),
  )
  encoder = TextEncoder(vocabulary=words.size, pad=words.pad, **c.text)
  objective = denoising(
    c,
    chosen(NETWORKS, c.network, field='network')(**c.model),
    shape=data.spec['image'].shape[1:],
    guide=(classifier_free(c.sampling.scale), clip()),
    conditioner=trained_text(encoder, length=words.length, drop_rate=c.drop_rate),
  )
  mesh, prompts = sharding.make_mesh(**c.mesh), sample_captions(test, number=c.samples.prompts, describe=described)
  shown = np.repeat(encode_all(words, prompts), c.samples.per_prompt, axis=0)
  generate = make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size)
  evaluators = grid_and_fid(
    c,
    generate,
    mesh=mesh,
    shown={'cond': {'text': shown}, 'num': len(shown), 'rows': prompts},
    reference=lambda: opened(c, c.reference)[0] if described is describe else dataset,
    cond=lambda num: {'text': data.rows(0, range(num))['text']},
    protocol={
      'prompts': 'captions of the training data',
      'sampler': f'DPM-Solver++ 2M, {c.sampling.steps} steps, clipped to [-1, 1]',
      'guidance': c.sampling.scale,
    },
  )
  evaluators += held_out(
    c, objective, lambda: held_out_split(c.dataset, resolution=c.resolution), mesh=mesh, transform=data.transform
  )
  if described is describe:
    evaluators += avatar_attributes(
      generate,
      attribute_classifier.load(),
      mesh=mesh,
      splits={'test': test, 'seen': opened(c, 'seen')[0]},
      encode=lambda prompts: {'text': encode_all(words, prompts.texts)},
      **c.attributes,
    )
  return Experiment(
    objective=objective,
    optimizers={
      'net': muon_and_adam(c.optimizer, steps=c.steps),
      'text': optax.adam(c.optimizer.adam, b2=c.optimizer.b2),
    },
    learning_rates={'net': warmup_cosine(c.optimizer.muon, warmup=c.optimizer.warmup, steps=c.steps)},
    averages={name: ema.Average(name, ema.warmup(c.ema)) for name in ('net', 'text')},
    data=data,
    mesh=mesh,
    evaluators=evaluators,
    tokenize=lambda texts: {'text': encode_all(words, texts)},
    **run_options(c),
  )
