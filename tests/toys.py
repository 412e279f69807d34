"""The smallest experiment that goes through the real loop: a linear denoiser of eight-pixel images."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import ema, sharding
from jaxgen.checkpoint import Policy
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets import avatars, avatars_pairs
from jaxgen.data.loader import Loader
from jaxgen.data.recipe import prepare
from jaxgen.experiment import Experiment
from jaxgen.objectives.base import Aux, Objective, Phase


def dataset(num: int = 48, fingerprint: str = 'toy') -> Dataset:
  images = np.random.default_rng(0).uniform(-1, 1, (num, 2, 4, 1)).astype(np.float32)
  return Dataset('toy', 'train', list(images), lambda image: {'image': image}, fingerprint)


def objective(width: int = 8, poison: float | None = None) -> Objective:
  """Learns the identity through noise; from the first batch whose mean is over `poison` the loss is not finite."""

  def init(key, frozen, batch):
    size = batch['image'][0].size
    return {'params': {'net': {'kernel': 0.1 * jax.random.normal(key, (size, width)), 'out': jnp.ones((width, size))}}}

  def loss(params, state, frozen, batch, key):
    x = batch['image'].reshape(len(batch['image']), -1)
    noisy = x + 0.1 * jax.random.normal(key, x.shape)
    error = jnp.mean((noisy @ params['net']['kernel'] @ params['net']['out'] - x) ** 2)
    if poison is not None:
      error = jnp.where(state.step >= poison, jnp.nan, error)
    return error, Aux()

  def sample(params, frozen, cond, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (8,)))(keys)
    return jnp.tanh(noise @ params['net']['kernel'] @ params['net']['out']).reshape(-1, 2, 4, 1)

  return Objective(init, (Phase('net', 'net', loss),), sample)


def experiment(**changes: Any) -> Experiment:
  """Twelve steps of batch 16, a checkpoint every 4; `changes` are fields of Experiment, or of the loader."""
  loader = {name: changes.pop(name) for name in ('batch_size', 'data_seed', 'fingerprint') if name in changes}
  data = Loader(
    dataset(fingerprint=loader.get('fingerprint', 'toy')),
    batch_size=loader.get('batch_size', 16),
    seed=loader.get('data_seed', 0),
  )
  fields = {
    'objective': objective(),
    'optimizers': {'net': optax.adamw(1e-2)},
    'averages': {'net': ema.Average('net', ema.constant(0.9))},
    'data': data,
    'steps': 12,
    'mesh': changes.get('mesh') or sharding.make_mesh(data=2, fsdp=4),
    'log_every': 2,
    'checkpoints': Policy(every=4, keep=2),
  }
  return Experiment(**(fields | changes))


def write_pairs(data_dir: pathlib.Path, num: int = 12) -> None:
  """Stands for avatars_pairs: a black picture, and a white one that it is edited to."""
  styles = avatars.DEFAULT.styles

  def examples(split: str):
    for number in range(num):
      style, before = avatars.record_choice(avatars_pairs.DEFAULT, split, number)
      after = avatars_pairs.changed(style, before, np.random.default_rng(number))
      image = np.concatenate([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)], axis=1)
      fields = {'was': avatars.encode_words(before.words), 'attributes': avatars.encode_words(after.words)}
      about = dict.fromkeys(('style', 'licence', 'author', 'source'), '')
      yield {'image': image, 'label': styles.index(style.name), **fields, **about}

  recipe = avatars_pairs.recipe()._replace(
    examples=lambda source: {split: examples(split) for split in avatars.SPLITS}, notes=dict
  )
  prepare(recipe, data_dir=data_dir)
