"""Experiment: the result of a config's `build`, with everything that a run needs, as plain values.

A run is an Experiment, or a tuple of them: stages, run one after the other (progressive growing, 256 then 512,
distillation). Steps are counted across stages.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import optax

from jaxgen import sharding
from jaxgen.checkpoint import Policy
from jaxgen.ema import Average
from jaxgen.evaluators.base import Evaluator
from jaxgen.frozen import frozen
from jaxgen.init_from import InitFrom
from jaxgen.objectives.base import Objective
from jaxgen.train_state import TrainState

T = TypeVar('T')


class Experiment(NamedTuple):
  """One stage of a run.

  Attributes:
    objective: the objective to train.
    optimizers: `{params key: optax transformation}`.
    averages: `{name: ema.Average}`; one named like its network is what is sampled.
    data: a `data.loader.Loader`: the batch of step s is a function of (dataset, seed, s).
    steps: train steps of this stage.
    mesh: the mesh, made by `sharding.make_mesh`.
    seed: seed of the initial parameters and of every step's randomness.
    rules: sharding rules of the state, by path.
    frozen: networks that are used, not trained: an argument of the step, sharded by the rules of networks. Trees of
      arrays, or `frozen.Frozen` to read them late and in a dtype of their own.
    evaluators: run while training, each at its own interval and after the last step; those of interval 0 do not run.
    evaluate_first: evaluators also run before the first step: the curves begin there, and an evaluation that cannot run
      (for want of memory, say) fails at once.
    accumulate: micro-batches in a batch.
    clip_norm: global-norm clipping; None for none.
    max_bad_steps: the run stops when this many steps in a row were not finite.
    log_every: steps between two lines of metrics, at most: a checkpoint and an evaluation have one too.
    checkpoints: when to save and which checkpoints to keep.
    stall_seconds: a run that makes no progress for this long, and for 20 times the median step, says where it hangs,
      saves if it can, and ends. None for no watching; the environment's JAXGEN_STALL_SECONDS goes before it.
    learning_rates: `{params key: optax schedule}`, the schedules of the optimizers, for metrics alone.
    tokenize: prompts to the fields of a batch, such as {'text': int32 n k}, for models of text.
    begin: `(old, fresh) -> state`, the first state of a stage that follows another, from that one's last state and a
      fresh one; by default what both have under one path and shape is carried over.
    init_from: published weights or another run, from which the first stage's parameters are taken.
  """

  objective: Objective
  optimizers: Mapping[str, optax.GradientTransformation]
  averages: Mapping[str, Average]
  data: Any
  steps: int
  mesh: jax.sharding.Mesh
  seed: int = 0
  rules: Sequence[sharding.Rule] = ()
  frozen: Mapping[str, Any] = {}
  evaluators: Sequence[Evaluator] = ()
  evaluate_first: bool = False
  accumulate: int = 1
  clip_norm: float | None = None
  max_bad_steps: int = 10
  log_every: int = 50
  checkpoints: Policy = Policy()
  stall_seconds: float | None = 1800.0
  learning_rates: Mapping[str, optax.Schedule] = {}
  tokenize: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None
  begin: Callable[[TrainState, TrainState], TrainState] | None = None
  init_from: InitFrom | None = None


class NoSuchChoice(ValueError):
  """A field of a config names none of its choices."""


def chosen(choices: Mapping[str, T], name: str, *, field: str) -> T:
  """The choice that a field of a config names.

  Args:
    choices: the choices, by name.
    name: the field's value.
    field: its own name, as in `--config.FIELD`.

  Raises:
    NoSuchChoice: it is none of them.
  """
  if name not in choices:
    close = difflib.get_close_matches(str(name), choices, n=1)
    meant = f'did you mean {close[0]!r}? ' if close else ''
    raise NoSuchChoice(f'config.{field} is {name!r}; {meant}it can be {", ".join(map(repr, choices))}')
  return choices[name]


def as_stages(experiment: Experiment | Sequence[Experiment]) -> tuple[Experiment, ...]:
  """The stages of a run, checked.

  Raises:
    ValueError: a stage cannot run as configured.
  """
  stages = (experiment,) if isinstance(experiment, Experiment) else tuple(experiment)
  # As Frozen, so that each is hashed once.
  stages = tuple(
    stage._replace(
      frozen={name: frozen(network) for name, network in stage.frozen.items()},
      evaluators=tuple(evaluator for evaluator in stage.evaluators if evaluator.every != 0),
    )
    for stage in stages
  )
  if not stages:
    raise ValueError('a run needs at least one Experiment, got none; build() must return one')
  for stage in stages:
    counts = {name: getattr(stage, name) for name in ('steps', 'accumulate', 'log_every', 'max_bad_steps')}
    policy = stage.checkpoints
    counts |= {f'checkpoints.{name}': getattr(policy, name) for name in ('every', 'keep', 'keep_every')}
    counts |= {f'every of {evaluator.name}': evaluator.every for evaluator in stage.evaluators}
    for name, value in counts.items():
      if value is not None and value < 1:
        raise ValueError(f'{name} is {value}; it must be 1 or more')
    if stage.clip_norm is not None and not stage.clip_norm > 0:
      raise ValueError(f'clip_norm is {stage.clip_norm}; it must be above 0, or None for no clipping')
    names = [evaluator.name for evaluator in stage.evaluators]
    if len(set(names)) < len(names):
      raise ValueError(f'evaluators must have different names, got {names}')
    sharding.check_batch_size(stage.data.identity['batch_size'], stage.mesh, accumulate=stage.accumulate)
    sizes = {key: leaf.shape[0] for key, leaf in stage.data.spec.items()}
    assert len(set(sizes.values())) == 1, sizes
  return stages


def stage_of(stages: Sequence[Experiment], step: int) -> int:
  """The stage that a checkpoint of `step` belongs to; the last step of a stage is still its own."""
  end = 0
  for index, stage in enumerate(stages):
    end += stage.steps
    if step <= end:
      return index
  return len(stages) - 1
