"""Fine-tunes Stable Diffusion 1.5 on one's own captioned pictures: all of the U-Net, in latents.

  jaxgen data encode --data folder:my_photos --size 512 --autoencoder SD15/vae --name my_photos_latents
  jaxgen train --config sd15_finetune --config.weights=SD15 --config.latents=my_photos_latents
  jaxgen plan --config sd15_finetune --topology v5e:2x2              # needs neither data nor weights

SD15 is a folder in diffusers' layout; those of 2.1 and of fine-tuned models do as well. Pictures of 512 pixels and
captions (docs/captions.md) are encoded once. The text encoder and the autoencoder are frozen; text is dropped for one
picture in ten, which keeps guidance. Without `weights` there is noise for latents: to plan a run, or to time its step.

Learning rate, average and batch are those that the public training scripts use. Result: not run.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgen import ema, frozen, sharding
from jaxgen.config_parts import held_out, run_options
from jaxgen.data.captions import lines
from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets.latents import latents
from jaxgen.data.datasets.synthetic import synthetic
from jaxgen.data.loader import Loader
from jaxgen.data.sources import source
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.samples import samples
from jaxgen.experiment import Experiment
from jaxgen.init_from import InitFrom
from jaxgen.models.layers import remat
from jaxgen.pretrained import autoencoder, hub, pipeline
from jaxgen.pretrained.blank import blank
from jaxgen.pretrained.pipeline import DENOISERS, Pipeline
from jaxgen.pretrained.prompts import prompts_of
from jaxgen.pretrained.text_to_image import channels, frozen_of, objective_of


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'weights': '',  # folder of the generator, or its name in `jaxgen weights list`; none for noise and no weights
      'blank': 'sd15',  # the generator without weights
      'latents': 'my_photos_latents',
      'resolution': 512,
      'data_dir': '',  # folder of the latents; empty for jaxgen's own
      'steps': 10_000,
      'batch_size': 64,
      'accumulate': 1,
      'mesh': {'data': 1, 'fsdp': -1, 'sequence': 1, 'tensor': 1},
      'dtype': 'bfloat16',
      'remat': 'full',
      'drop_rate': 0.1,
      'guidance': 1.0,  # the guidance scale that Flux-dev reads in training
      'optimizer': {'rate': 1e-5, 'weight_decay': 1e-2, 'warmup': 500},
      'ema': 0.9999,
      'clip_norm': 1.0,
      'sampling': {'steps': 30, 'scale': 7.5, 'batch_size': 8},
      'samples': {'every': 1000, 'prompts': ('a photo of a cat', 'a red house by the sea'), 'per_prompt': 4},
      'held_out': {'dataset': '', 'every': 1000, 'num': 256, 'batch_size': 8},  # other pictures: folder:PATH, ...
      'log_every': 50,
      'checkpoint': {'every': 500, 'keep': 2},
    }
  )


def opened(c: ConfigDict) -> tuple[Pipeline, Dataset]:
  """The generator, with activations as the config says, and the latents of its autoencoder."""
  if c.weights:
    place = hub.resolved(c.weights)
    it = pipeline.load(place, dtype=jnp.dtype(c.dtype))
    digest = autoencoder.load(f'{place}/vae').hash
    dataset = latents(c.latents, autoencoder=digest, data_dir=c.data_dir or None)
  else:
    it = blank(c.blank, dtype=jnp.dtype(c.dtype))
    side = c.resolution // 8
    dataset = synthetic((side, side, channels(it)))
  name = next(name for name in DENOISERS if name in it.components)
  denoiser: Any = it.components[name]
  again = denoiser._replace(net=denoiser.net.clone(remat=remat.policy(c.remat)))
  return it._replace(components={**it.components, name: again}), dataset


def build(c: ConfigDict) -> Experiment:
  mesh, (it, dataset) = sharding.make_mesh(**c.mesh), opened(c)
  size = (c.resolution, c.resolution)
  prompts = prompts_of(it, size=size, drop_rate=c.drop_rate, guidance=c.guidance)
  objective = objective_of(it, size=size, steps=c.sampling.steps, guidance=c.sampling.scale, prompts=prompts)

  def transform(record: Record, rng: np.random.Generator) -> Record:
    text = lines(record, rng) if c.weights else ''
    rest = {name: value for name, value in record.items() if name != 'caption'}
    return rest | {name: rows[0] for name, rows in prompts.tokenize([text]).items()}

  data = Loader(
    dataset,
    batch_size=c.batch_size,
    seed=c.seed,
    transform=transform,
    transform_name=' '.join(tokenizer.fingerprint for tokenizer in it.tokenizers.values()),
  )
  ids = prompts_of(it, size=size, guidance=c.sampling.scale).tokenize(c.samples.prompts)
  shown = {name: np.repeat(rows, c.samples.per_prompt, axis=0) for name, rows in ids.items()}
  generate = make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size)
  grid = samples(
    generate,
    mesh=mesh,
    cond=shown,
    num=len(c.samples.prompts) * c.samples.per_prompt,
    every=c.samples.every,
    rows=list(c.samples.prompts),
  )
  options = dict(c.held_out)
  other = options.pop('dataset')
  loss = held_out(
    ConfigDict({'held_out': options}),
    objective,
    lambda: source(other, 'test', resolution=c.resolution) if other else None,
    mesh=mesh,
    transform=data.transform,
  )
  rate = optax.linear_schedule(0.0, c.optimizer.rate, min(c.optimizer.warmup, c.steps // 2))
  return Experiment(
    objective=objective,
    optimizers={'net': optax.adamw(rate, weight_decay=c.optimizer.weight_decay)},
    averages={'net': ema.Average('net', ema.constant(c.ema))},
    data=data,
    mesh=mesh,
    frozen={
      name: frozen.frozen(tree, dtype=None if name == 'autoencoder' else jnp.dtype(c.dtype))
      for name, tree in frozen_of(it).items()
    },
    init_from=InitFrom(c.weights) if c.weights else None,
    evaluators=(grid, *loss) if c.weights else (),
    tokenize=prompts.tokenize,
    **run_options(c),
  )
