"""Times the train step of an experiment, alone or in turn with another program's.

Steps differ where phases have intervals, so a cycle of steps is timed, after which all phases have run as often
as they do on average: 16 steps where a path length is taken every 4 and R1 every 16, 1 step where there is no interval.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import flops, sharding, stage_setup
from jaxgen.bench.usage import Usage, own
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
  peer_usage: Callable[[], Usage] = lambda: Usage(0.0, 0),
  inspect: Callable[[Any], None] = lambda compiled: None,
) -> dict[str, Any]:
  """Times the train step of an experiment's first stage, cycle by cycle, on its own data.

  Args:
    experiment: the Experiment that `build(config)` returns.
    steps: steps to time, after `warmup` more; both are rounded up to whole cycles.
    peer: runs a cycle of another program and returns its seconds. It is called after each cycle; the ratio is the
      median of the cycles' own ratios, which holds on a machine that is busy with other things.
    peer_usage: processor time and page faults of that program so far.
    inspect: called with the compiled step.

  Returns:
    Numbers ready for JSON. `step_ms` is the median cycle's mean; `peak_bytes` is of one device; `model_flops` are of a
    step on all devices, without what is computed twice; `input_wait` is a share of the time. `peak_flops` is published
    (bfloat16), else measured (float32). `processor` has the same by processor time, of this process on the host: on a
    CPU also the share of a peak that was measured by processor time, and with a peer the ratio to its processor time.
  """
  stage = as_stages(experiment)[0]
  abstract, frozen = stage_setup.abstract_state(stage), stage_setup.place_frozen(stage)
  began = time.perf_counter()
  step = stage_setup.compile_step(stage, abstract, frozen)
  compiled = time.perf_counter() - began
  inspect(step)
  cycle = math.lcm(*(phase.every for phase in stage.objective.phases))
  cold = math.ceil(warmup / cycle)
  cycles = cold + math.ceil(steps / cycle)
  begin = stage_setup.initial_state(stage, abstract)
  timed = _time(stage, step, begin, frozen, cycle, cycles, peer, peer_usage)
  total, waits, theirs, used, used_by_peer = (each[cold:] for each in timed)
  median = statistics.median(total) / cycle
  operations, (peak, source) = model_flops(stage, abstract, frozen), _peak(stage)
  batch_size, memory = stage.data.identity['batch_size'], step.memory_analysis()
  result: dict[str, Any] = {
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
    'processor': _processor(used, total, cycle, operations),
  }
  if peer is not None:
    ratio = statistics.median(ours / other for ours, other in zip(total, theirs, strict=True))
    result |= {'peer_step_ms': 1e3 * statistics.median(theirs) / cycle, 'ratio': ratio}
    result['processor'] |= _processor_of_peer(used, used_by_peer, cycle)
  return result


def _processor(used: Sequence[Usage], total: Sequence[float], cycle: int, operations: int) -> dict[str, Any]:
  """Processor time and page faults of a step, medians over cycles."""
  seconds = statistics.median(each.seconds for each in used) / cycle
  found: dict[str, Any] = {
    'step_ms': 1e3 * seconds,
    'to_wall_time': statistics.median(each.seconds / wall for each, wall in zip(used, total, strict=True)),
    'page_faults_per_step': statistics.median(each.faults for each in used) / cycle,
  }
  if jax.default_backend() == 'cpu':
    peak = _measured_peak(by=lambda: own().seconds)
    found |= {'peak_flops': peak, 'peak_share': operations / seconds / peak}
  return found


def _processor_of_peer(used: Sequence[Usage], theirs: Sequence[Usage], cycle: int) -> dict[str, Any]:
  """The same of the peer, and the median of the cycles' ratios; {} where its usage is not known."""
  if not all(each.seconds for each in theirs):
    return {}
  return {
    'peer_step_ms': 1e3 * statistics.median(each.seconds for each in theirs) / cycle,
    'peer_page_faults_per_step': statistics.median(each.faults for each in theirs) / cycle,
    'ratio': statistics.median(ours.seconds / other.seconds for ours, other in zip(used, theirs, strict=True)),
  }


def _time(stage: Experiment, step, state: TrainState, frozen, cycle: int, cycles: int, peer, peer_usage):
  """Seconds of each cycle with its waits for data, of the waits alone, and of the peer's; then the usage of both."""
  key = jax.random.key(stage.seed)
  batches = stage.data.iterate(0, sharding.batch_sharding(stage.mesh))
  total, waits, theirs, used, used_by_peer = [], [], [], [], []
  try:
    for first in range(0, cycles * cycle, cycle):
      began, waited, before = time.perf_counter(), 0.0, own()
      for index in range(first, first + cycle):
        wait_began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - wait_began
        state, _ = step(state, frozen, batch, jax.random.fold_in(key, index))
        jax.block_until_ready(state)
      total.append(time.perf_counter() - began)
      used.append(own().since(before))
      waits.append(waited)
      before = peer_usage()
      theirs.append(0.0 if peer is None else peer())
      used_by_peer.append(peer_usage().since(before))
  finally:
    batches.close()
  return total, waits, theirs, used, used_by_peer


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


def _measured_peak(size: int = 1024, by: Callable[[], float] = time.perf_counter) -> float:
  """The best of several float32 products of two matrices, by the clock or by processor time."""
  x = jnp.ones((size, size))
  product = jax.jit(lambda x: x @ x).lower(x).compile()
  seconds = []
  for _ in range(10):
    began = by()
    product(x).block_until_ready()
    seconds.append(by() - began)
  return 2 * size**3 / max(min(seconds), 1e-9)
