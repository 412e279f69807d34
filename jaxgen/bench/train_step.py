"""Times the train step of an experiment, alone or in turn with another program's.

Steps differ where phases have intervals, so a cycle of steps is timed, after which all phases have run as often
as they do on average: 16 steps where a path length is taken every 4 and R1 every 16, 1 step where there is no interval.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import flops, sharding, stage_setup
from jaxgen.experiment import Experiment, as_stages
from jaxgen.train_state import TrainState

# Published dense bfloat16 peaks, FLOP/s for each JAX device, by `device_kind`.
PEAKS = {
  'TPU v2': 22.5e12,  # a device is one of the chip's two cores
  'TPU v3': 61.5e12,  # the same
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
  'TPU7x': 1153.5e12,  # half a chip
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
}


def bench_train_step(
  experiment: Experiment | tuple[Experiment, ...],
  *,
  steps: int = 20,
  warmup: int = 2,
  peer: Callable[[], float] | None = None,
) -> dict[str, Any]:
  """Times the train step of an experiment's first stage, cycle by cycle, on its own data.

  Args:
    experiment: the Experiment that `build(config)` returns.
    steps: steps to time, after `warmup` more; both are rounded up to whole cycles.
    peer: runs a cycle of another program and returns its seconds. It is called after each cycle; the ratio is the
      median of the cycles' own ratios, which holds on a machine that is busy with other things.

  Returns:
    Numbers ready for JSON. `step_ms` is the median cycle's mean; `peak_bytes` is of one device; `model_flops` are of a
    step on all devices, without what is computed twice; `input_wait` is a share of the time. `peak_flops` is published
    (bfloat16), else measured (float32).
  """
  stage = as_stages(experiment)[0]
  abstract, frozen = stage_setup.abstract_state(stage), stage_setup.place_frozen(stage)
  began = time.perf_counter()
  step = stage_setup.compile_step(stage, abstract, frozen)
  compiled = time.perf_counter() - began
  cycle = math.lcm(*(phase.every for phase in stage.objective.phases))
  cold = math.ceil(warmup / cycle)
  cycles = cold + math.ceil(steps / cycle)
  timed = _time(stage, step, stage_setup.initial_state(stage, abstract), frozen, cycle, cycles, peer)
  total, waits, theirs = (seconds[cold:] for seconds in timed)
  median = statistics.median(total) / cycle
  operations, (peak, source) = model_flops(stage, abstract, frozen), _peak(stage)
  batch_size, memory = stage.data.identity['batch_size'], step.memory_analysis()
  result = {
    'device': jax.devices()[0].device_kind,
    'devices': stage.mesh.size,
    'batch_size': batch_size,
    'cycle': cycle,
    'cycles': len(total),
    'step_ms': 1e3 * median,
    'images_per_second': batch_size / median,
    'compile_seconds': compiled,
    'peak_bytes': None if memory is None else memory.peak_memory_in_bytes,
    'input_wait': sum(waits) / sum(total),
    'model_flops': operations,
    'peak_flops': peak,
    'peak_source': source,
    'peak_share': operations / median / peak,
  }
  if peer is not None:
    ratio = statistics.median(ours / other for ours, other in zip(total, theirs, strict=True))
    result |= {'peer_step_ms': 1e3 * statistics.median(theirs) / cycle, 'ratio': ratio}
  return result


def _time(stage: Experiment, step, state: TrainState, frozen, cycle: int, cycles: int, peer):
  """Seconds of each cycle with its waits for data, of the waits alone, and of the peer's cycle."""
  key = jax.random.key(stage.seed)
  batches = stage.data.iterate(0, sharding.batch_sharding(stage.mesh))
  total, waits, theirs = [], [], []
  try:
    for first in range(0, cycles * cycle, cycle):
      began, waited = time.perf_counter(), 0.0
      for index in range(first, first + cycle):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, _ = step(state, frozen, batch, jax.random.fold_in(key, index))
        jax.block_until_ready(state)
      total.append(time.perf_counter() - began)
      waits.append(waited)
      theirs.append(0.0 if peer is None else peer())
  finally:
    batches.close()
  return total, waits, theirs


def model_flops(stage: Experiment, abstract: TrainState, frozen: Mapping[str, Any]) -> int:
  """Operations of a train step's losses and gradients; a phase that runs every n steps counts 1/n."""
  operations = 0
  for phase in stage.objective.phases:

    def loss(subtree, state, batch, frozen, phase=phase):
      params = state.params | subtree
      return phase.loss(params, state, frozen, batch, jax.random.key(0))[0]

    args = {name: abstract.params[name] for name in phase.keys}, abstract, stage.data.spec, frozen
    operations += flops.count_gradient(loss, *args) // phase.every
  return operations


def _peak(stage: Experiment) -> tuple[float, str]:
  """FLOP/s of the mesh, and where the number is from."""
  kind = jax.devices()[0].device_kind
  if kind in PEAKS:
    return PEAKS[kind] * stage.mesh.size, 'published'
  shared = jax.default_backend() == 'cpu'  # fake devices are the same cores
  return _measured_peak() * (1 if shared else stage.mesh.size), 'measured'


def _measured_peak(size: int = 1024) -> float:
  """The best of several float32 products of two matrices."""
  x = jnp.ones((size, size))
  product = jax.jit(lambda x: x @ x).lower(x).compile()
  seconds = []
  for _ in range(10):
    began = time.perf_counter()
    product(x).block_until_ready()
    seconds.append(time.perf_counter() - began)
  return 2 * size**3 / min(seconds)
