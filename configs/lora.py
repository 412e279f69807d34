"""A LoRA of a text-to-image model on your own pictures: a style, or a subject (DreamBooth).

  jaxgen train --config avatars                                                    # the base, or any run of text
  jaxgen train --config lora --config.base=runs/avatars --config.dataset=folder:my_photos
  jaxgen sample --run runs/lora --prompt 'a woman in my style' --out woman.png
  jaxgen weights lora runs/lora my_style.safetensors
  jaxgen sample --run runs/avatars --lora my_style.safetensors:0.8 --prompt 'a woman' --out woman.png

Captions are those of the pictures, or one for all: --config.caption='a photo of sks person'. A subject of few pictures
keeps its class with samples of the base: `jaxgen data prepare generated --run RUN --prompt 'a person'`, then
--config.prior.dataset=generated_... The grid of samples before the first step is the base's.

Result, of rank 2 on all products of the network (--config.lora.on="('net/',)"), 47,328 parameters or 1.8%, 200 steps of
16 on a style that the base never saw, learning rate 1.2e-2: 97% of the gain in held-out loss of full fine-tuning, 91%
at 5e-3 (docs/results.md).
"""

import importlib
import importlib.util
import json
import pathlib
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen import ema, sharding
from jaxgen.adapters.lora import ATTENTION, NAME, LoRA, kernels, lora
from jaxgen.config_parts import run_options
from jaxgen.data.captions import Describe, check_captions, lines, sample_captions, tags
from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets.avatars_captions import describe
from jaxgen.data.loader import Loader
from jaxgen.data.prior import with_prior
from jaxgen.data.reader import Transform
from jaxgen.data.sources import fits_in_memory, held_out_split, source
from jaxgen.evaluators.base import Evaluator
from jaxgen.evaluators.fid import fid
from jaxgen.evaluators.generate import Generate, make_generate
from jaxgen.evaluators.held_out_loss import held_out_loss
from jaxgen.evaluators.samples import samples
from jaxgen.experiment import Experiment
from jaxgen.frozen import Frozen, in_int8
from jaxgen.init_from import later
from jaxgen.model_folder import resolved
from jaxgen.models.layers.remat import policy
from jaxgen.objectives.adapted import adapted
from jaxgen.objectives.base import Objective
from jaxgen.optimizers import rates_by_path


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'base': 'runs/avatars',  # the run whose model is adapted, or a model such as jaxgen/avatars
      'base_dtype': 'bfloat16',  # dtype of the frozen networks; int8 for kernels in eight bits
      'dataset': 'avatars32',  # folder:PATH, ...
      'caption': '',  # caption of every picture, in place of its own
      'tags': {'shuffle': False, 'keep_first': 1, 'drop': 0.0},  # captions that are tags with commas between them
      'prior': {'dataset': '', 'weight': 1.0, 'caption': ''},  # pictures of the class, and their weight in the loss
      'steps': 500,
      'batch_size': 16,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'lora': {'rank': 8, 'alpha': 8.0, 'on': (ATTENTION,), 'dropout': 0.0},
      'remat': 'dots',  # rematerialisation: none, dots (keeps products with weights) or full
      'learning_rate': 2e-3,
      'rates': (),  # factors of the rate by pattern, such as (('blocks/attention/out', 0.5),)
      'ema': 0.99,
      'clip_norm': 1.0,
      'samples': {'every': 100, 'prompts': (), 'per_prompt': 8},  # prompts; none for captions of the pictures
      'sampling': {'batch_size': 64},
      # Other pictures of the dataset: their loss and FID; without a name the validation or test split, if there is one.
      'held_out': {'split': '', 'every': 100, 'images': 128, 'fid': 0},
      'log_every': 20,
      'evaluate_first': True,  # evaluates the base before the first step
      'checkpoint': {'every': 100, 'keep': 2},
    }
  )


def opened(path: str) -> Experiment:
  """The experiment of a base run, as its folder says; that of avatars where there is none yet."""
  file = pathlib.Path(resolved(path)).expanduser() / 'config.json'
  kept = json.loads(file.read_text()) if file.is_file() else {'name': 'avatars', 'config': {}}
  if kept.get('file') or importlib.util.find_spec(f'configs.{kept["name"]}') is None:
    raise ValueError(
      f'{path} was made with {kept.get("file") or kept["name"]}, which does not come with this jaxgen; adapt it with a '
      'config of yours'
    )
  module = importlib.import_module(f'configs.{kept["name"]}')
  config = module.get_config()
  config.update(kept['config'])
  stage = module.build(config)
  if not isinstance(stage, Experiment) or stage.tokenize is None:
    raise ValueError(f'{path} is no run of one stage that reads text; --config.base wants one, such as avatars')
  return stage


def pictures(spec: str, size: int, caption: str, by_tags: ConfigDict | None = None) -> tuple[Dataset, Describe]:
  """The dataset of that name, and what describes its records."""
  dataset = source(spec, resolution=size)
  return dataset, describing(dataset, caption, by_tags)


def describing(dataset: Dataset, caption: str, by_tags: ConfigDict | None = None) -> Describe:
  """What describes the records of a dataset: one caption for all, attributes of avatars, or their own captions."""
  if caption:
    return lambda record, rng: caption
  if 'attributes' in dataset.read(0):
    return describe
  check_captions(dataset)
  if by_tags is not None and by_tags.shuffle:
    return tags(by_tags.keep_first, by_tags.drop)
  return lines


def loader(c: ConfigDict, base: Experiment) -> tuple[Loader, list[str]]:
  """The data, and prompts to show."""
  tokenize: Any = base.tokenize
  size = base.data.spec['image'].shape[1]
  dataset, described = pictures(c.dataset, size, c.caption, c.get('tags'))
  prompts = list(c.samples.prompts) or list(dict.fromkeys(sample_captions(dataset, number=8, describe=described)))
  if c.prior.dataset:
    dataset, described = with_prior(
      (dataset, described), pictures(c.prior.dataset, size, c.prior.caption), weight=c.prior.weight
    )

  # The fields that pictures of the subject and of its class share.
  shared = sorted(set.intersection(*(set(dataset.read(i % dataset.num_examples)) for i in (0, 1))))

  def transform(record: Record, rng: np.random.Generator) -> Record:
    ids = tokenize([described(record, rng)])
    return {name: record[name] for name in shared} | {name: rows[0] for name, rows in ids.items()}

  data = Loader(
    dataset,
    batch_size=c.batch_size,
    seed=c.seed,
    transform=transform,
    transform_name=f'{base.data.identity} {c.caption} {c.prior.caption}',
    cache=fits_in_memory(dataset),
  )
  return data, prompts


def frozen_base(c: ConfigDict, base: Experiment) -> dict[str, Frozen]:
  """The networks of the base, with their kernels in eight bits if `base_dtype` is int8."""
  spec, eight = base.data.spec, c.base_dtype == 'int8'
  networks = later(c.base, base.objective, spec, dtype='float32' if eight else c.base_dtype)
  if not eight:
    return networks
  batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
  return in_int8(networks, kernels(lambda key: base.objective.init(key, {}, batch)['params']))


def held_out(
  c: ConfigDict,
  base: Experiment,
  objective: Objective,
  generate: Generate,
  mesh: jax.sharding.Mesh,
  *,
  transform: Transform | None,
) -> tuple[Evaluator, ...]:
  """The loss on pictures that are not trained on, and FID of samples of their captions to them."""
  if not c.held_out.every:
    return ()
  tokenize, denoising = cast(Any, base.tokenize), cast(Any, objective.denoising)
  size, split = base.data.spec['image'].shape[1], c.held_out.split
  dataset = source(c.dataset, split, resolution=size) if split else held_out_split(c.dataset, resolution=size)
  if dataset is None:
    return ()
  loss = held_out_loss(
    denoising,
    dataset,
    mesh=mesh,
    every=c.held_out.every,
    batch_size=c.sampling.batch_size,
    num=c.held_out.images,
    cond=tuple(tokenize([''])),
    transform=transform,
  )
  if not c.held_out.fid:
    return (loss,)
  described, number = describing(dataset, c.caption), min(c.held_out.images, dataset.num_examples)
  texts = [described(dataset.read(i), np.random.default_rng([c.seed, i])) for i in range(number)]
  repeated = {name: ids[np.arange(c.held_out.fid) % len(ids)] for name, ids in tokenize(texts).items()}
  protocol = {'prompts': f'captions of {dataset.name}, {dataset.split}', 'sampler': 'of the base'}
  distance = fid(
    generate,
    dataset,
    mesh=mesh,
    cond=repeated,
    num_samples=c.held_out.fid,
    every=c.held_out.every,
    batch_size=16,
    protocol=protocol,
  )
  return loss, distance


def build(c: ConfigDict) -> Experiment:
  mesh, base = sharding.make_mesh(**c.mesh), opened(c.base)
  networks = tuple(base.optimizers)
  objective = adapted(base.objective, lora(LoRA(**c.lora), base=networks), remat=policy(c.remat))
  data, prompts = loader(c, base)
  generate = make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size)
  tokenize: Any = base.tokenize
  shown = {name: np.repeat(ids, c.samples.per_prompt, axis=0) for name, ids in tokenize(prompts).items()}
  num = c.samples.per_prompt * len(prompts)
  schedule = partial(optax.warmup_cosine_decay_schedule, 0.0, warmup_steps=min(20, c.steps // 2), decay_steps=c.steps)
  return Experiment(
    objective=objective,
    optimizers={NAME: rates_by_path(optax.adam(schedule(c.learning_rate)), c.rates)},
    averages={NAME: ema.Average(NAME, ema.warmup(c.ema))},
    data=data,
    mesh=mesh,
    frozen={**base.frozen, **frozen_base(c, base)},
    evaluators=(
      samples(generate, mesh=mesh, cond=shown, num=num, every=c.samples.every, rows=prompts),
      *held_out(c, base, objective, generate, mesh, transform=data.transform),
    ),
    tokenize=base.tokenize,
    **run_options(c),
  )
