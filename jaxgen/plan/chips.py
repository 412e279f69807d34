"""Accelerators: what they are published to do, and the devices of a machine made of them, without the machine.

A topology is written GENERATION:SHAPE, `v5e:4x4`, and stands for one slice of chips; there may be several slices,
joined by the data centre's network. Programs are compiled for it by the compiler that comes with `jax[tpu]`.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

GIB = 2**30
# What libtpu asks for before it starts where there is no TPU; v5litepod-4 only names a machine that it knows.
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
    bandwidth: of that memory, byte/s.
    interconnect: to the neighbours in a slice, byte/s that a chip can send: half of the bidirectional sum of its links.
    network: between slices, byte/s that a chip can send.
    devices: JAX devices on a chip.
    source: where the published numbers stand.
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
CHIPS = {
  'v5e': Chip('TPU v5 lite', 197e12, 15.75 * GIB, 819e9, 200e9, 6.4e12 / 8 / 256, 1, _CLOUD + 'v5e'),
  'v5p': Chip('TPU v5', 459e12, 95.74 * GIB, 2765e9, 600e9, 50e9 / 8, 1, _CLOUD + 'v5p'),
  'v6e': Chip('TPU v6 lite', 918e12, 31.25 * GIB, 1638e9, 400e9, 25.6e12 / 8 / 256, 1, _CLOUD + 'v6e'),
  'tpu7x': Chip('TPU7x', 2307e12, 2 * 94.75 * GIB, 7380e9, 600e9, 100e9 / 8, 2, _CLOUD + 'tpu7x'),
}
_GPUS = ('a100', 'h100', 'h200', 'b200')


class Topology(NamedTuple):
  """A machine to plan for: its name, the kind of chip, the number of slices, and its devices in any order."""

  name: str
  chip: Chip
  slices: int
  devices: Sequence[Any]

  @property
  def chips(self) -> int:
    return len(self.devices) // self.chip.devices


def set_environment() -> None:
  """Lets libtpu compile where there is no TPU; no effect once JAX has started.

  Without JAX's cache of compiled programs: it keeps those of a topology, but only a TPU can read them back.
  """
  for name, value in {'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false', **NO_TPU_HERE}.items():
    os.environ.setdefault(name, value)


def generation(name: str) -> str:
  """The generation in a topology's name: 'v5e' of 'v5e:4x4'.

  Raises:
    ValueError: there is none that can be planned for.
  """
  kind, _, shape = name.partition(':')
  if kind in _GPUS:
    raise ValueError(
      f'topology {name!r}: only TPUs can be planned for. On a machine with such a GPU, `pip install jax[cuda13]` and '
      '`jaxgen bench config` measure the real step'
    )
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
