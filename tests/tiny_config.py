"""A config of the smallest run there can be, for tests of what surrounds training: two classes of flat images."""

from functools import partial

import numpy as np
import optax
from ml_collections import ConfigDict, config_dict

from jaxgen import ema, sharding
from jaxgen.checkpoint import Policy
from jaxgen.data.dataset import Dataset
from jaxgen.data.loader import Loader
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import make_generate
from jaxgen.evaluators.samples import samples
from jaxgen.experiment import Experiment
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.conditioning import always
from jaxgen.train_state import sampling_params


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'steps': 4,
      'batch_size': 8,
      'optimizer': {'learning_rate': 0.5, 'betas': (0.9, 0.95), 'nesterov': False},
      'checkpoint_every': 2,
      'note': 'flat images',
      'limit': config_dict.placeholder(int),
      'nothing': None,
      'sizes': [1, 2],
      'target': 0.0,
      'log_every': 1,
    }
  )


def objective() -> Objective:
  """Learns each class's mean image; a sample is that mean, with its key's noise at a tenth."""
  import jax
  import jax.numpy as jnp

  def init(key, frozen, batch):
    return {'params': {'net': {'means': jnp.zeros((2, 4, 4, 3))}}, 'extra': {}}

  def loss(params, state, frozen, batch, key):
    error = batch['image'] - params['net']['means'][batch['label']]
    return jnp.mean(error**2), Aux()

  def sample(params, frozen, cond, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 3)))(keys)
    return jnp.clip(params['net']['means'][cond['label']] + 0.1 * noise, -1.0, 1.0)

  return Objective(init, (Phase('net', 'net', loss),), sample, conditioner=always('label'))


def mean(context: Context, *, target: float) -> dict[str, float]:
  """How far the light class's mean, of what is sampled with, is from a target."""
  context.writer.protocol('mean', {'target': target})
  return {'mean': float(np.mean(sampling_params(context.state)['net']['means'][1])) - target}


def build(c: ConfigDict) -> Experiment:
  if c.batch_size < 1:
    raise ValueError(f'batch_size is {c.batch_size}; it must be 1 or more')
  mesh = sharding.make_mesh()
  records = [{'image': np.full((4, 4, 3), label - 0.5, np.float32), 'label': np.int32(label)} for label in (0, 1)]
  dataset = Dataset('flat', 'train', records, dict, 'flat-1', ('dark', 'light'))
  made = objective()
  generate = make_generate(made.sample, mesh=mesh, batch_size=8)
  cond = {'label': np.arange(8, dtype=np.int32) % 2}
  return Experiment(
    objective=made,
    optimizers={'net': optax.sgd(c.optimizer.learning_rate)},
    averages={'net': ema.Average('net', ema.constant(0.5)), 'wide': ema.Average('net', ema.power(0.1))},
    data=Loader(dataset, batch_size=c.batch_size, seed=c.seed, threads=1),
    steps=c.steps,
    mesh=mesh,
    seed=c.seed,
    log_every=c.log_every,
    checkpoints=Policy(every=c.checkpoint_every, keep=4),
    evaluators=(
      samples(generate, mesh=mesh, cond=cond, num=8, every=2),
      Evaluator('mean', 2, partial(mean, target=c.target)),
    ),
  )
