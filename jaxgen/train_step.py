"""The one train step, for every network and every objective.

A step runs the objective's phases in order. A phase is one optimizer update of one or several subtrees of the
parameters, differentiated in one pass, each by its own optimizer:

  g = mean over micro-batches of grad loss                     (accumulation, by scan)             (1)
  g <- g * min(1, clip_norm / |g|)                             (clipping by the global norm)       (2)
  params, opt_state <- optimizer(g)   if loss and |g| are finite, else unchanged                   (3)

then every average moves towards its parameters (ema.py, Eq. 1). A step in which any phase was not finite leaves
the averages as they were and is counted in `state.bad_steps`. Eq. 3 is a conditional: for a select of
every leaf, XLA's CPU backend first copies all moments (DiT-S/4: 545 MB of temporaries in place of 368).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.ema import Average
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.train_state import TrainState
from jaxgen.typing import Array, Batch


class Mean(NamedTuple):
  """A mean to be taken later: `clu.metrics.Average`'s two fields, without its import."""

  total: Array
  count: Array


TrainStep = Callable[[TrainState, Any, Batch, Array], tuple[TrainState, dict[str, Mean]]]  # (state, frozen, batch, key)


def make_train_step(
  objective: Objective,
  optimizers: Mapping[str, optax.GradientTransformation],
  averages: Mapping[str, Average],
  *,
  accumulate: int = 1,
  clip_norm: float | None = None,
) -> TrainStep:
  """Returns `step(state, frozen, batch, key) -> (state, metrics)`, pure, to be jitted by the caller.

  Args:
    objective: the objective to train.
    optimizers: one optax transformation for each key of `state.params`.
    averages: the named averages to keep.
    accumulate: micro-batches in a batch; activations take the memory of one of them. Each has randomness of its own.
    clip_norm: the largest global norm of a phase's gradient; None leaves it.

  Metrics are `{name: Mean}`; a phase that did not run counts 0. Names carry the phase's where there are several.
  """
  names = [phase.name for phase in objective.phases]
  if len(set(names)) != len(names):
    raise ValueError(f'phases must have different names, got {names}')

  def step(state: TrainState, frozen: Any, batch: Batch, key: Array):
    metrics: dict[str, Mean] = {}
    finite = jnp.bool_(True)
    for index, phase in enumerate(objective.phases):
      update = functools.partial(_run_phase, phase, optimizers, accumulate=accumulate, clip_norm=clip_norm)
      args = (state, frozen, batch, jax.random.fold_in(key, index))
      state, phase_metrics, phase_finite = update(*args) if phase.every == 1 else _every(phase.every, update, args)
      prefix = f'{phase.name}/' if len(names) > 1 else ''
      metrics |= {prefix + name: value for name, value in phase_metrics.items()}
      finite &= phase_finite
    done = state.step + 1
    state = state.replace(
      step=done,
      bad_steps=jnp.where(finite, 0, state.bad_steps + 1),
      ema={name: _move(state, name, average, done, finite) for name, average in averages.items()},
    )
    metrics['skipped'] = Mean(jnp.float32(~finite), jnp.float32(1))
    return state, metrics

  return step


def _run_phase(phase: Phase, optimizers, state, frozen, batch, key, *, accumulate, clip_norm):
  """One update: (state, metrics, whether it was finite)."""
  loss, aux, grads = _gradients(phase, state, frozen, batch, key, accumulate)
  norm = optax.tree.norm(grads)
  if clip_norm is not None:
    scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))  # Eq. 2
    grads = jax.tree.map(lambda g: g * scale, grads)
  params, opt_state = ({name: tree[name] for name in grads} for tree in (state.params, state.opt_state))
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)

  def update():
    made = {name: optimizers[name].update(grads[name], opt_state[name], params[name]) for name in grads}
    moved = {name: optax.apply_updates(params[name], updates) for name, (updates, _) in made.items()}
    return moved, {name: new for name, (_, new) in made.items()}

  new_params, new_opt_state = jax.lax.cond(finite, update, lambda: (params, opt_state))  # Eq. 3
  keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
  metrics = {'loss': loss, 'grad_norm': norm, **aux.metrics}
  one = jnp.float32(finite)
  state = state.replace(
    params=state.params | new_params,
    opt_state=state.opt_state | new_opt_state,
    extra=state.extra | {name: keep(tree, state.extra[name]) for name, tree in aux.extra.items()},
  )
  # A bad step's values would make every mean they enter not finite: they count for nothing.
  means = {name: Mean(jnp.where(finite, jnp.float32(value), 0.0), one) for name, value in metrics.items()}
  return state, means, finite


def _gradients(phase: Phase, state: TrainState, frozen, batch, key, accumulate: int):
  """Loss, Aux and gradients of one phase, averaged over the micro-batches (Eq. 1)."""

  def loss_fn(subtrees, extra, part, part_key):
    loss, aux = phase.loss(state.params | subtrees, state.replace(extra=extra), frozen, part, part_key)
    return loss, aux

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  subtrees = {name: state.params[name] for name in phase.keys}
  if accumulate == 1:
    (loss, aux), grads = grad_fn(subtrees, state.extra, batch, key)
    return loss, aux, grads

  def body(carry, inputs):
    total, extra = carry
    index, part = inputs
    (loss, aux), grads = grad_fn(subtrees, extra, part, jax.random.fold_in(key, index))
    return (jax.tree.map(jnp.add, total, grads), extra | aux.extra), (loss, aux.metrics)

  # Rows i, i + accumulate, ... make micro-batch i, so that every device keeps the rows it holds.
  parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
  zeros = jax.tree.map(jnp.zeros_like, subtrees)
  (total, extra), (losses, metrics) = jax.lax.scan(body, (zeros, state.extra), (jnp.arange(accumulate), parts))
  mean = functools.partial(jnp.mean, axis=0)
  return (
    mean(losses),
    Aux(jax.tree.map(mean, metrics), extra),
    jax.tree.map(lambda g: g / accumulate, total),
  )


def _every(every: int, update: Callable, args: tuple):
  """`update(*args)` at steps that are multiples of `every`; elsewhere the state as it is and metrics that count 0."""
  state = args[0]
  _, shapes, _ = jax.eval_shape(update, *args)
  nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  return jax.lax.cond(
    state.step % every == 0,
    lambda: update(*args),
    lambda: (state, nothing, jnp.bool_(True)),
  )


def _move(state: TrainState, name: str, average: Average, step: Array, finite: Array):
  """The average after this step: ema.py, Eq. 1."""
  rate = jnp.where(finite, 1.0 - average.decay(step), 0.0)
  return jax.tree.map(lambda old, new: old + rate * (new - old), state.ema[name], state.params[average.of])
