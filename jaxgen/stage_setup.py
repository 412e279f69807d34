"""The start of a stage: its state, its frozen networks and its compiled step, each on the stage's mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import frozen as frozen_networks
from jaxgen import init_from, sharding
from jaxgen.experiment import Experiment
from jaxgen.models.rules import RULES
from jaxgen.train_state import TrainState, init_state
from jaxgen.train_step import TrainStep, make_train_step

Init = Callable[[Any], TrainState]  # key -> the state before the first step


def abstract_state(stage: Experiment, init: Init | None = None) -> TrainState:
  """Shapes, dtypes and shardings of a stage's state; nothing is computed.

  Args:
    stage: the stage.
    init: its `init_of`, where the state itself is made with it as well, so that it is traced once.
  """
  shapes = jax.eval_shape(init or init_of(stage), jax.random.key(stage.seed))
  shardings = sharding.shard_tree(shapes, stage.mesh, stage.rules, known=RULES)
  sharding.check_axes((shardings, frozen_places(stage)), stage.mesh)
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
  )


def initial_state(stage: Experiment, abstract: TrainState, init: Init | None = None) -> TrainState:
  """The state before the first step, made where it will live."""
  shardings, init = jax.tree.map(lambda leaf: leaf.sharding, abstract), init or init_of(stage)
  return jax.jit(lambda key: init(key), out_shardings=shardings)(jax.random.key(stage.seed))


def init_of(stage: Experiment) -> Init:
  """Makes the state before the first step of a key; jitted, so that its trace is kept."""

  def init(key):
    batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in stage.data.spec.items()}
    return init_state(
      stage.objective, stage.optimizers, stage.averages, batch, key, frozen=frozen_networks.shapes(stage.frozen)
    )

  return jax.jit(init)


def first_state(
  stage: Experiment,
  abstract: TrainState,
  *,
  resume: Callable[[TrainState], TrainState] | None,
  previous: TrainState | None,
  init: Init | None = None,
) -> TrainState:
  """The state that a stage starts with, in one of four ways: resumed, after another stage, from elsewhere, or fresh.

  Args:
    stage: the stage.
    abstract: its `abstract_state`.
    resume: restores a checkpoint of the run, if it has one.
    previous: the last state of the stage before, if there was one.
    init: its `init_of`, where `abstract` was made with it.
  """
  if resume is not None:
    return resume(abstract)
  fresh = initial_state(stage, abstract, init)
  if previous is not None:
    return begin_stage(stage, previous, fresh)
  if stage.init_from is not None:
    return state_from(stage, fresh)
  return fresh


def state_from(stage: Experiment, fresh: TrainState) -> TrainState:
  """`fresh` with the parameters of `stage.init_from`: averages and optimizers start from them."""
  assert stage.init_from is not None
  params = init_from.initialised(fresh.params, stage.init_from, networks=stage.objective.networks)
  places = jax.tree.map(lambda leaf: leaf.sharding, (fresh.ema, fresh.opt_state))

  def derived(params):
    ema = {name: params[average.of] for name, average in stage.averages.items()}
    return ema, {name: stage.optimizers[name].init(tree) for name, tree in params.items()}

  ema, opt_state = jax.jit(derived, out_shardings=places)(params)
  return fresh.replace(params=params, ema=ema, opt_state=opt_state)


def carry_over(old: TrainState, new: TrainState) -> TrainState:
  """The next stage's state: every array that `old` has under the same path and shape, placed as in `new`."""
  have = {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}

  def pick(path, leaf):
    before = have.get(sharding.path_name(path))
    same = before is not None and (before.shape, before.dtype) == (leaf.shape, leaf.dtype)
    return jax.device_put(before, leaf.sharding) if same else leaf

  return jax.tree_util.tree_map_with_path(pick, new)


def begin_stage(stage: Experiment, old: TrainState, fresh: TrainState) -> TrainState:
  """The first state of a stage that follows another, in buffers of its own, since the step donates them."""
  state = (stage.begin or carry_over)(old, fresh)
  return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding, may_alias=False), state, fresh)


def place_frozen(stage: Experiment) -> dict[str, Any]:
  """The frozen networks on the mesh, sharded like parameters."""
  return frozen_networks.place(stage.frozen, frozen_places(stage))


def frozen_places(stage: Experiment) -> dict[str, Any]:
  """A NamedSharding for each leaf of the frozen networks."""
  return sharding.shard_tree(frozen_networks.shapes(stage.frozen), stage.mesh, known=RULES)


def mesh_step(stage: Experiment) -> TrainStep:
  """The train step of a stage, traced with its mesh in sight."""
  step = make_train_step(
    stage.objective,
    stage.optimizers,
    stage.averages,
    accumulate=stage.accumulate,
    clip_norm=stage.clip_norm,
  )
  return sharding.under(stage.mesh, step)


def compile_step(stage: Experiment, abstract: TrainState, frozen: Any) -> Any:
  """The train step of a stage, compiled for its mesh and each shape that its batches have; the state is donated."""
  place = sharding.batch_sharding(stage.mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  jitted = jax.jit(mesh_step(stage), donate_argnums=0, out_shardings=(shardings, sharding.replicated(stage.mesh)))
  steps = {}
  for spec in stage.data.specs:
    batch = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for name, leaf in spec.items()}
    traced = jitted.trace(abstract, frozen, batch, jax.random.key(stage.seed))
    sharding.check_sequence(traced.jaxpr.jaxpr, stage.mesh)
    steps[_shapes(batch)] = traced.lower().compile()
  if len(steps) == 1:
    return next(iter(steps.values()))
  return lambda state, frozen, batch, key: steps[_shapes(batch)](state, frozen, batch, key)


def _shapes(batch: Mapping[str, Any]) -> tuple:
  return tuple(sorted((name, leaf.shape) for name, leaf in batch.items()))
