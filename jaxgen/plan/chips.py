"""Accelerators: their published peaks, and the devices of a machine made of them, without the machine.

A topology is written GENERATION:SHAPE. Of TPUs, `v5e:4x4` is one slice of chips; there may be several slices, joined by
the data centre's network, and the compiler comes with `jax[tpu]`. Of GPUs, `h100:2x8` is two nodes of eight, and a node
is what a slice is; the compiler is JAX's plug-in for CUDA (gpus.py).
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxgen.plan import gpus
from jaxgen.plan.gpus import GPUS

GIB = 2**30
# Variables that libtpu needs where there is no TPU; v5litepod-4 only names a machine that it knows.
NO_TPU_HERE = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class Chip(NamedTuple):
  """Published peaks of one chip.

  Attributes:
    kind: `device_kind` of its JAX devices.
    flops: dense bfloat16, FLOP/s.
    memory: bytes that XLA lets a program use on all of the chip's devices, as its own error message says; a little
      under the published capacity.
    bandwidth: bandwidth of that memory, byte/s.
    interconnect: byte/s that a chip can send to its neighbours in a slice: half of the bidirectional sum of its links.
    network: bandwidth between slices, in byte/s that one chip can send.
    devices: JAX devices on a chip.
    source: where the numbers were published.
  """

  kind: str
  flops: float
  memory: float
  bandwidth: float
  interconnect: float
  network: float
  devices: int
  source: str


_CLOUD = 'https://docs.cloud.google.com/tpu/docs/'
# Each page's table of specifications gives compute in bfloat16, memory and its bandwidth, and the interconnect in both
# directions. The network: 6.4 and 25.6 Tbit/s for the 256 chips of a v5e and a v6e pod, on their pages; 50, 100 and
# 100 Gbit/s for a v5p, v6e and TPU7x chip, all on TPU7x's.
CHIPS = {
  'v5e': Chip('TPU v5 lite', 197e12, 15.75 * GIB, 819e9, 200e9, 6.4e12 / 8 / 256, 1, _CLOUD + 'v5e'),
  'v5p': Chip('TPU v5', 459e12, 95.74 * GIB, 2765e9, 600e9, 50e9 / 8, 1, _CLOUD + 'v5p'),
  'v6e': Chip('TPU v6 lite', 918e12, 31.25 * GIB, 1638e9, 400e9, 25.6e12 / 8 / 256, 1, _CLOUD + 'v6e'),
  'tpu7x': Chip('TPU7x', 2307e12, 2 * 94.75 * GIB, 7380e9, 600e9, 100e9 / 8, 2, _CLOUD + 'tpu7x'),
}


def _gpu(kind: str, flops: float, nvlink: float, network: float) -> Chip:
  """`nvlink` both ways, as it is published; `network` in bit/s, one adapter to a GPU as in NVIDIA's own machines.

  JAX takes three quarters of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
  """
  gpu, source = GPUS[kind], f"NVIDIA's data sheets of {kind.upper()} and DGX {kind.upper()}, dense"
  return Chip(gpu.name, flops, 0.75 * gpu.memory, gpu.bandwidth, nvlink / 2, network / 8, 1, source)


CHIPS |= {
  'a100': _gpu('a100', 312e12, 600e9, 200e9),
  'h100': _gpu('h100', 989e12, 900e9, 400e9),
  'h200': _gpu('h200', 989e12, 900e9, 400e9),
  'b200': _gpu('b200', 2250e12, 1800e9, 400e9),
}


class Topology(NamedTuple):
  """A machine to plan for: its name, the kind of chip, the number of slices or nodes, and its devices in any order."""

  name: str
  chip: Chip
  slices: int
  devices: Sequence[Any]

  @property
  def chips(self) -> int:
    return len(self.devices) // self.chip.devices

  @property
  def label(self) -> str:
    """Its name and, where that does not say it, the number of slices."""
    return f'{self.slices} x {self.name}' if self.slices > 1 and not self.are_gpus else self.name

  @property
  def are_gpus(self) -> bool:
    return self.name.partition(':')[0] in GPUS

  def slice_of(self, device: Any) -> int:
    """The slice or node that one of its devices is in; of GPUs that are not there, JAX tells their process only."""
    from jaxgen import sharding  # not sooner: it imports JAX, and `set_environment` comes before that

    return device.process_index if self.are_gpus else sharding.slice_of(device)


def set_environment() -> None:
  """Lets compilers work where there is neither TPU nor GPU; no effect once JAX has started.

  Without JAX's cache of compiled programs: it keeps those of a topology, but only a TPU can read them back.
  """
  for name, value in {'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false', **NO_TPU_HERE}.items():
    os.environ.setdefault(name, value)
  gpus.set_environment()


def generation(name: str) -> str:
  """The generation in a topology's name: 'v5e' of 'v5e:4x4'.

  Raises:
    ValueError: there is none that can be planned for.
  """
  kind, _, shape = name.partition(':')
  if kind not in CHIPS or not shape:
    raise ValueError(f'topology {name!r} is not understood; wanted GENERATION:SHAPE, of {", ".join(CHIPS)}: v5e:4x4')
  return kind


def topology(name: str, slices: int = 1) -> Topology:
  """The devices of a topology such as 'v5e:4x4', of which programs can be compiled but not run.

  Raises:
    ValueError: there is no such topology, or what compiles for it is not installed.
  """
  chip = CHIPS[generation(name)]
  if slices < 1:
    raise ValueError(f'slices is {slices}; it must be 1 or more')
  if generation(name) in GPUS:
    if slices > 1:
      raise ValueError(f"slices is {slices}; GPUs' nodes are in the topology's shape: h100:2x8")
    return Topology(name, chip, *gpus.devices(name))
  _find_compiler()
  from jax.experimental import topologies

  several = {'num_slices': slices} if slices > 1 else {}
  try:
    described = topologies.get_topology_desc(platform='tpu', topology_name=name, **several)
  except Exception as error:  # whatever the plug-in raises, it is about the name
    raise ValueError(f'libtpu knows no topology {name!r}: {str(error).splitlines()[0]}') from None
  return Topology(name, chip, slices, described.devices)


def _find_compiler() -> None:
  import importlib.util

  if importlib.util.find_spec('libtpu') is None:
    raise ValueError("the compiler for TPUs is not installed: pip install 'jax[tpu]'; no TPU is needed")
