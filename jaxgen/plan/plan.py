"""The plan of a train step on a machine: the step is compiled for it, and the program is compared with the peaks.

  compute   = operations that are executed / (devices * peak FLOP/s)                        (1)
  memory    = bytes moved to and from a device's memory / its bandwidth                     (2)
  neighbours, network = bytes that a device sends within, between slices / its bandwidth    (3)
  step      = the largest of them: all overlap, and each runs at its published peak         (4)

Eq. 4 is a bound that no real step reaches; it says which resource limits the step, and the least that a run costs.
Williams et al. 2009, "Roofline". Operations are counted from the jaxpr (flops.py), rematerialisation and the padding of
fused kernels included; Eqs. 2 and 3 are read from the compiled program (program.py).
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import flops, sharding, stage_setup
from jaxgen import frozen as frozen_networks
from jaxgen.bench.train_step import model_flops
from jaxgen.evaluators.generate import sampler
from jaxgen.experiment import Experiment
from jaxgen.models.layers.attention import unfused
from jaxgen.plan import program as programs
from jaxgen.plan.chips import GIB, Topology
from jaxgen.train_state import TrainState, sampling_params

_SENT = ('bytes_within_slice', 'bytes_between_slices', 'bytes_asynchronous')


class DoesNotFit(ValueError):
  """A program needs more memory than a device has; `needed` bytes, where the compiler says how many."""

  def __init__(self, message: str, needed: float | None):
    super().__init__(message)
    self.needed = needed


def plan(stage: Experiment, machine: Topology) -> dict[str, Any]:
  """Compiles the train step of a stage whose mesh covers a machine, and returns its memory, traffic and time.

  Returns:
    Numbers ready for JSON: bytes and seconds, of one device unless named otherwise.

  Raises:
    DoesNotFit: it needs more memory than there is.
  """
  abstract, frozen = stage_setup.abstract_state(stage), abstract_frozen(stage)
  compiled, took = timed(lambda: stage_setup.compile_step(stage, abstract, frozen), machine)
  with attention_of(machine):
    executed = flops.count(stage_setup.mesh_step(stage), *bare((abstract, frozen, stage.data.spec)), jax.random.key(0))
  found = analysis(compiled, stage, machine, executed)
  _check_memory(found['memory'])
  batch_size = stage.data.identity['batch_size']
  rate = batch_size / found['roofline']['step']
  useful = model_flops(stage, bare(abstract), bare(frozen))
  days = stage.steps * batch_size / rate / 86400
  memory = found['memory']
  return {
    **describe(stage, machine),
    **took,
    'parameters': {name: _size(tree) for name, tree in abstract.params.items()},
    **found,
    'memory': {**state_bytes(abstract, frozen), **memory},
    'fsdp_theory': fsdp_theory(abstract, stage.mesh.shape, stage.accumulate),
    'flops': {'model': useful, 'executed': executed},
    'images_per_second': rate,
    'peak_share': useful / found['roofline']['step'] / (machine.chips * machine.chip.flops),
    'run': {'steps': stage.steps, 'days': days, 'chip_hours': 24 * days * machine.chips},
  }


def plan_sample(stage: Experiment, machine: Topology, *, batch_size: int) -> dict[str, Any]:
  """The same for sampling `batch_size` images from the averaged parameters."""
  sharding.check_batch_size(batch_size, stage.mesh)
  abstract, frozen = stage_setup.abstract_state(stage), abstract_frozen(stage)
  place = sharding.batch_sharding(stage.mesh)
  rows = {name: stage.data.spec[name].shape[1:] for name in stage.objective.conditioner.fields}
  cond = {
    name: jax.ShapeDtypeStruct((batch_size, *shape), stage.data.spec[name].dtype, sharding=place)
    for name, shape in rows.items()
  }
  indices = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=place)
  run = sampler(stage.objective.sample, mesh=stage.mesh)
  args = sampling_params(abstract), frozen, cond, jax.random.key(0), indices, {}
  compiled, took = timed(lambda: run.lower(*args).compile(), machine)
  params, frozen, cond, key, indices, _ = args
  with attention_of(machine):
    executed = flops.count(run, *bare((params, frozen, cond)), key, *bare((indices,)), {})
  found = analysis(compiled, stage, machine, executed)
  _check_memory(found['memory'])
  return {
    'batch_size': batch_size,
    **took,
    **found,
    'flops': {'executed': executed},
    'images_per_second': batch_size / found['roofline']['step'],
  }


def describe(stage: Experiment, machine: Topology) -> dict[str, Any]:
  return {
    'machine': machine.label,
    'topology': machine.name,
    'slices': machine.slices,
    'chips': machine.chips,
    'mesh': dict(stage.mesh.shape),
    'batch_size': stage.data.identity['batch_size'],
    'accumulate': stage.accumulate,
    'fused_attention': not machine.are_gpus,
    'peaks': machine.chip._asdict(),
  }


def analysis(compiled: Any, stage: Experiment, machine: Topology, executed: int) -> dict[str, Any]:
  """Memory, collectives and roofline of a compiled program that executes so many operations on all devices."""
  program = programs.parse(compiled.as_text())
  slices = [machine.slice_of(device) for device in stage.mesh.devices.flat]
  kinds: dict[str, dict[str, float]] = {}
  for collective in programs.collectives(program, stage.mesh.size, machine.slices):
    within, between = programs.sent(collective, slices)
    total = kinds.setdefault(collective.kind, dict.fromkeys(_SENT, 0.0) | {'count': 0})
    total['count'] += collective.times
    total['bytes_asynchronous'] += collective.asynchronous * (within + between)
    total['bytes_within_slice'] += within
    total['bytes_between_slices'] += between
  traffic = programs.memory_traffic(program)
  chip, parts = machine.chip, machine.chip.devices
  seconds = {
    'compute': executed / (machine.chips * chip.flops),  # Eq. 1
    'memory': traffic / (chip.bandwidth / parts),  # Eq. 2
    'neighbours': sum(kind['bytes_within_slice'] for kind in kinds.values()) / (chip.interconnect / parts),  # Eq. 3
    'network': sum(kind['bytes_between_slices'] for kind in kinds.values()) / (chip.network / parts),
  }
  limit = max(seconds, key=lambda name: seconds[name])
  measured = compiled.memory_analysis()
  return {
    'memory': {
      # At the peak, what is not an argument; the compiler sets aside more for temporaries that are not there at once.
      'activations': max(0, measured.peak_memory_in_bytes - measured.argument_size_in_bytes),
      'temporaries': measured.temp_size_in_bytes,
      'program': measured.generated_code_size_in_bytes,
      'on_host': measured.host_temp_size_in_bytes,
      'peak': measured.peak_memory_in_bytes,
      'limit': chip.memory / parts,
    },
    'collectives': kinds,
    'memory_traffic': traffic,
    'roofline': {**seconds, 'step': seconds[limit], 'limited_by': limit},  # Eq. 4
  }


def state_bytes(abstract: TrainState, frozen: Any) -> dict[str, int]:
  """Bytes on one device of what lives from step to step."""
  parts = {
    'parameters': abstract.params,
    'optimizer': abstract.opt_state,
    'averages': abstract.ema,
    'extra': abstract.extra,
    'frozen': frozen,
  }
  return {name: _bytes(tree) for name, tree in parts.items()}


def fsdp_theory(abstract: TrainState, mesh: Mapping[str, int], accumulate: int) -> float:
  """Bytes that a device sends in a step of fully sharded training in bfloat16, as it is usually done.

  Of S bytes of a parameter, two an element, in n shards with k copies of each, it gathers all twice, for the forward
  and for the backward pass, and scatters the gradient once, for each micro-batch; then the copies are summed. (Of a
  modulation's gradient jaxgen sends vectors instead: `sharding.under`.) By Eqs. 1 and 2 of program.py:

    accumulate * 3 S (n - 1) / n + 2 S / n (k - 1) / k                  (5)
  """
  total = 0.0
  for leaf in jax.tree.leaves(abstract.params):
    split = {axis: mesh[axis] for axis in sharding.axes_of(leaf.sharding)}
    size, shards = 2 * leaf.size / split.get('tensor', 1), split.get('fsdp', 1)
    copies = mesh['data'] * mesh['fsdp'] * mesh['sequence'] // shards
    total += accumulate * 3 * size * (shards - 1) / shards + 2 * size / shards * (copies - 1) / copies  # Eq. 5
  return total


def abstract_frozen(stage: Experiment) -> dict[str, Any]:
  """Shapes and places of the frozen networks."""
  frozen = frozen_networks.shapes(stage.frozen)
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=place),
    frozen,
    stage_setup.frozen_places(stage),
  )


def attention_of(machine: Topology) -> contextlib.AbstractContextManager[None]:
  """Within it, attention is traced as it can be compiled here: a GPU's is part of cuDNN, which wants to see the GPU."""
  return unfused() if machine.are_gpus else contextlib.nullcontext()


def timed(compile_: Callable[[], Any], machine: Topology) -> tuple[Any, dict[str, float]]:
  """The compiled program and the seconds that compiling took, by the clock and of all processors."""
  clock, processors = time.perf_counter(), time.process_time()
  try:
    with attention_of(machine):
      compiled = compile_()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise _does_not_fit(_needed(str(error)), machine.chip.memory / machine.chip.devices) from None
  took = {
    'compile_seconds': time.perf_counter() - clock,
    'compile_processor_seconds': time.process_time() - processors,
  }
  return compiled, took


def _check_memory(memory: Mapping[str, float]) -> None:
  """Refuses programs that are too large and that the compiler lets pass; a GPU's lets every program pass."""
  if memory['peak'] > memory['limit']:
    raise _does_not_fit(memory['peak'], memory['limit'])


def _does_not_fit(needed: float | None, limit: float) -> DoesNotFit:
  amount = 'more memory' if needed is None else f'{needed / GIB:.2f} GiB'
  return DoesNotFit(f'the program needs {amount} on a device of {limit / GIB:.2f} GiB', needed)


def _needed(message: str) -> float | None:
  """The bytes that the compiler says a program would take."""
  found = re.search(r'(?:Used |temporaries \()([\d.]+)([KMGT])', message)
  return float(found.group(1)) * 1024 ** ('KMGT'.index(found.group(2)) + 1) if found else None


def bare(tree: Any) -> Any:
  """Shapes without places."""
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)


def _size(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def text(found: Mapping[str, Any]) -> str:
  """A plan as a person reads it."""
  mesh = ' x '.join(f'{axis} {size}' for axis, size in found['mesh'].items() if size > 1) or 'one device'
  memory, time_ = found['memory'], found['roofline']
  lines = [
    f'{found["machine"]}: {found["chips"]} chips, mesh {mesh}, batch {found["batch_size"]}'
    + (f' in {found["accumulate"]} parts' if found['accumulate'] > 1 else ''),
    'parameters  ' + ', '.join(f'{name} {size:,}' for name, size in found['parameters'].items()),
    f'compiled in {found["compile_seconds"]:.0f} s, {found["compile_processor_seconds"]:.0f} s of a processor',
    '',
    'memory of a device, GiB',
    *(f'  {name:<18}{memory[name] / GIB:9.3f}' for name in memory if memory[name] or name == 'peak'),
    '',
    'collectives of a step, MB sent by a device: within a slice, between slices; share that runs beside other work',
    *(
      f'  {kind:<18}{total["count"]:>6} times{total["bytes_within_slice"] / 1e6:12.1f}'
      f'{total["bytes_between_slices"] / 1e6:12.1f}{_share(total):8.0%}'
      for kind, total in found['collectives'].items()
    ),
    f'  fully sharded data parallelism asks for {found["fsdp_theory"] / 1e6:.1f}',
    '',
    f'TFLOP of a step    {found["flops"]["model"] / 1e12:.2f} of the model, {found["flops"]["executed"] / 1e12:.2f} '
    'executed',
    _roofline(time_),
    f'images a second    {found["images_per_second"]:,.0f} at most, {found["peak_share"]:.0%} of peak',
    *([] if found['fused_attention'] else ["attention is XLA's here; cuDNN's moves fewer bytes and keeps less"]),
    f'{found["run"]["steps"]:,} steps take {found["run"]["days"]:.2f} days, {found["run"]["chip_hours"]:,.0f} '
    f'chip-hours, at least ({found["peaks"]["source"]})',
  ]
  if 'sample' in found:
    sampled = found['sample']
    lines += [
      '',
      f'sampling {sampled["batch_size"]} images: peak {sampled["memory"]["peak"] / GIB:.3f} GiB, compiled in '
      f'{sampled["compile_seconds"]:.0f} s',
      _roofline(sampled['roofline']),
      f'images a second    {sampled["images_per_second"]:,.1f} at most',
    ]
  return '\n'.join(lines)


def _share(total: Mapping[str, float]) -> float:
  """Share of a kind of collective's bytes that are sent while the device does something else."""
  sent = total['bytes_within_slice'] + total['bytes_between_slices']
  return total['bytes_asynchronous'] / sent if sent else 0.0


def cost(found: Mapping[str, Any], *, images: float | None = None, price: float | None = None) -> str:
  """The least that training costs, in chip-hours and, given a price, in money.

  Args:
    found: a plan.
    images: images to train on; None for those of the run.
    price: price of a chip-hour, in any currency.
  """
  images = found['run']['steps'] * found['batch_size'] if images is None else images
  hours = images / found['images_per_second'] / 3600 * found['chips']
  operations = images * found['flops']['model'] / found['batch_size']
  money = '' if price is None else f', {hours * price:,.2f} at {price:g} a chip-hour'
  return f'{images:,.0f} images ({operations:.3g} FLOP) take {hours:,.1f} chip-hours at least{money}'


def _roofline(seconds: Mapping[str, Any]) -> str:
  parts = ', '.join(f'{name} {1e3 * seconds[name]:.1f}' for name in ('compute', 'memory', 'neighbours', 'network'))
  return f'roofline, ms       {1e3 * seconds["step"]:.1f}, limited by {seconds["limited_by"]}: {parts}'


def row(found: Mapping[str, Any]) -> str:
  """A plan as a row of the README's table."""
  mesh = ' x '.join(f'{axis} {size}' for axis, size in found['mesh'].items() if size > 1)
  cells = (
    found['machine'],
    f'{found["chips"]:,}',
    mesh,
    f'{found["batch_size"]:,}',
    f'{found["memory"]["peak"] / GIB:.2f} of {found["memory"]["limit"] / GIB:.1f}',
    f'{1e3 * found["roofline"]["step"]:.1f}',
    found['roofline']['limited_by'],
    f'{found["peak_share"]:.0%}',
    f'{found["images_per_second"]:,.0f}',
    f'{found["run"]["days"]:.2f}',
  )
  return '| ' + ' | '.join(cells) + ' |'
