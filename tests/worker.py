"""One process of a run: `python -m tests.worker WORKDIR STEPS [WHAT]`; the environment says which.

WHAT happens in process 1, at step 5: `term` it is told to stop, `interrupt` by Ctrl-C, `kill` it dies, `fail` its
data ends, `late` its data does not come. `kill_first` is for process 0; with `term_look` it is told to
stop while all of them evaluate.
With LOCAL_CHECKPOINTS every process keeps a checkpoint of each step in that folder.
`kill_features=N` is for a single process, which dies over the Nth batch of images that it extracts features of.
"""

import itertools
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import distributed, sharding
from jaxgen.evaluators import fid as fid_module
from jaxgen.evaluators import kept_statistics
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.fid import fid
from jaxgen.evaluators.generate import make_generate
from jaxgen.experiment import Experiment
from jaxgen.models import inception
from jaxgen.pretrained import inception as inception_weights
from tests import toys

STEP = 5


def _network(params, x):
  """Stands for Inception: four numbers of a prepared image."""
  return jnp.tanh(x[:, ::100, ::100].reshape(len(x), -1) @ params['kernel'])


def _toy_inception(replace) -> None:
  kernel = np.random.default_rng(0).normal(size=(27, 4)).astype(np.float32)
  replace(inception_weights, 'load', lambda: inception_weights.Inception({'kernel': kernel}, 'toy'))
  replace(inception, 'network', _network)
  replace(inception, 'FEATURES', 4)


def experiment(steps: int, replace=setattr) -> Experiment:
  """The toy run, sharded 2 x 4, with FID every 4 steps by a toy network that `replace` puts in Inception's place."""
  _toy_inception(replace)
  mesh = sharding.make_mesh(data=2, fsdp=4)
  generate = make_generate(toys.objective().sample, mesh=mesh, batch_size=16)
  evaluator = fid(
    generate, toys.dataset(), mesh=mesh, cond={}, num_samples=40, every=4, batch_size=16, protocol={}, seed=3
  )
  return toys.experiment(steps=steps, mesh=mesh, evaluators=(evaluator,), log_every=1)


def evaluate(argv: list[str]) -> int:
  """`jaxgen evaluate ARGV` with the toy network in Inception's place."""
  from jaxgen.cli.main import main

  _toy_inception(setattr)
  return main(['evaluate', *argv])


def _happen(what: str) -> None:
  if what == 'term':
    os.kill(os.getpid(), signal.SIGTERM)
  elif what == 'interrupt':
    os.kill(os.getpid(), signal.SIGINT)
  elif what.startswith('kill'):
    os.kill(os.getpid(), signal.SIGKILL)
  elif what == 'fail':
    raise ValueError('records end at 80')
  elif what == 'late':
    time.sleep(3600)


def _look(context: Context) -> dict[str, float]:
  """An evaluation that is long unless it is cut short."""
  if jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGTERM)
  for _ in range(600):
    time.sleep(0.1)
    context.pause()
  return {}


def _die_over_features(batch: int) -> None:
  kept_statistics._EVERY = 0.0
  make, batches = fid_module.feature_extractor, itertools.count(1)

  def made(*args, **options):
    extract = make(*args, **options)

    def extract_or_die(images):
      if next(batches) == batch:
        _happen('kill')
      return extract(images)

    return extract_or_die

  fid_module.feature_extractor = made


class _Data:
  """A loader whose batch of one step brings `what` with it."""

  def __init__(self, data, what: str):
    self._data, self._what = data, what
    self.identity, self.spec, self.specs = data.identity, data.spec, data.specs

  def iterate(self, step, place):
    batches = self._data.iterate(step, place)
    return _Batches(batches, step, self._what)


class _Batches:
  def __init__(self, batches, step: int, what: str):
    self._batches, self._step, self._what = batches, step, what
    self.close = batches.close

  def __next__(self):
    if self._step == STEP + 2 * ('LOCAL_CHECKPOINTS' in os.environ):  # each save waits for the one before
      _happen(self._what)
    elif self._step > STEP and self._what in ('term', 'interrupt'):
      time.sleep(0.5)  # the notice takes a moment to go round
    self._step += 1
    return next(self._batches)


def main() -> None:
  distributed.start()
  from jaxgen.local_checkpoints import Local
  from jaxgen.train import train

  workdir, steps, what = sys.argv[1], int(sys.argv[2]), ''.join(sys.argv[3:])
  stage = experiment(steps)
  if what.startswith('kill_features='):
    _die_over_features(int(what.partition('=')[2]))
  elif what == 'term_look':
    stage = stage._replace(evaluators=(Evaluator('look', 4, _look),))
  elif what and jax.process_index() == (0 if what == 'kill_first' else 1):
    stage = stage._replace(data=_Data(stage.data, what))
  try:
    disk = os.environ.get('LOCAL_CHECKPOINTS')
    train(stage, workdir, local=Local(disk, 1) if disk else None)
  except distributed.Preempted as stopped:
    sys.exit(stopped.exit_code)
  except distributed.Interrupted:
    sys.exit(130)
  except Exception as error:
    distributed.fail(error)
    raise


if __name__ == '__main__':
  main()
