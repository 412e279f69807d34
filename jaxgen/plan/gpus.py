"""Descriptions of GPUs, for which XLA compiles where there is none.

A topology is written GPU:NODESxGPUS, `h100:2x8`: two nodes of eight. Products are not tuned, since tuning times them on
a GPU; a real run tunes, so its kernels are not quite these, but its arrays and its collectives are.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

# Without them the compiler looks for a GPU to time kernels on.
FLAGS = ('--xla_gpu_autotune_level=0', '--xla_gpu_shard_autotuning=false')
_PLUGINS = ('jax_cuda13_plugin', 'jax_cuda12_plugin')


class Gpu(NamedTuple):
  """Properties of a GPU that XLA uses, as the CUDA driver reports them; sizes in bytes.

  Attributes:
    name: `device_kind` of its JAX devices.
    capability: the major version of its compute capability.
    cores: streaming multiprocessors.
    lanes: float32 operations that one of these begins in a cycle.
    clock: their clock rate, GHz.
    shared: memory that a multiprocessor's threads share; a block may have all but 1 KiB of it.
    cache: bytes of cache on the chip.
    memory: the GPU's memory.
    bandwidth: bandwidth of that memory, byte/s.
  """

  name: str
  capability: int
  cores: int
  lanes: int
  clock: float
  shared: int
  cache: int
  memory: int
  bandwidth: float


GPUS = {
  'a100': Gpu('NVIDIA A100-SXM4-80GB', 8, 108, 64, 1.41, 164 * 2**10, 40 * 2**20, 85_100_068_864, 2039e9),
  'h100': Gpu('NVIDIA H100 80GB HBM3', 9, 132, 128, 1.98, 228 * 2**10, 50 * 2**20, 84_942_979_072, 3352e9),
  'h200': Gpu('NVIDIA H200', 9, 132, 128, 1.98, 228 * 2**10, 50 * 2**20, 151_397_597_184, 4800e9),
  'b200': Gpu('NVIDIA B200', 10, 148, 128, 1.965, 228 * 2**10, 132_644_864, 191_514_411_008, 7672e9),
}


def set_environment() -> None:
  """Lets XLA compile where there is no GPU; no effect once JAX has started."""
  flags = os.environ.get('XLA_FLAGS', '').split()
  os.environ['XLA_FLAGS'] = ' '.join([*flags, *(flag for flag in FLAGS if flag not in flags)])


def devices(name: str) -> tuple[int, Sequence[Any]]:
  """The number of nodes of a topology such as 'h100:2x8', and its GPUs, node by node.

  Raises:
    ValueError: it is not understood, or what compiles for it is not installed.
  """
  kind, _, shape = name.partition(':')
  sizes = [int(size) for size in shape.split('x') if size.isdecimal()]
  if len(sizes) != 2 or shape != 'x'.join(map(str, sizes)) or not all(sizes):
    raise ValueError(f'topology {name!r} is not understood; wanted {kind}:NODESxGPUS, such as {kind}:2x8')
  if not any(importlib.util.find_spec(plugin) for plugin in _PLUGINS):
    raise ValueError(
      f'topology {name!r}: the compiler for GPUs is not installed: pip install jax-cuda13-plugin jax-cuda13-pjrt, in '
      "jaxlib's version; neither CUDA nor a GPU is needed"
    )
  from jax.experimental import topologies

  nodes, each = sizes
  shape = f'{nodes}x1x{each}'  # slices, as XLA calls what the fast interconnect joins; their hosts; a host's GPUs
  described = topologies.get_topology_desc(
    platform='cuda', topology_name=kind, target_config=_target_config(GPUS[kind]), topology=shape
  )
  return nodes, described.devices


def _target_config(gpu: Gpu) -> str:
  """XLA's `GpuTargetConfigProto` as text; what is not of `gpu` is the same for all of these."""
  return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {gpu.shared - 2**10}
  shared_memory_per_core: {gpu.shared}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {gpu.bandwidth:.0f}
  device_memory_size: {gpu.memory}
  l2_cache_size: {gpu.cache}
  cuda_compute_capability {{ major: {gpu.capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{gpu.name}"
"""
