"""Settings of the process, made before JAX starts: the CPU's by every program, a TPU's by launchers and plans.

`--xla_cpu_experimental_ynn_fusion_type=individual_dot`: by default jaxlib 0.10 gives YNNPACK reductions too, and
products together with what surrounds them; some come out wrong. The Jacobian of a layer norm, taken with `vmap`, mixed
images (tests/test_xla_flags.py); with `dot`, so did that of a DiT whose blocks are not scanned (tests/test_models.py).
Products alone may stay with it: they are right, faster than Eigen's, and as fast in a step of DiT-S/4 as with `dot`.

`NPROC`: XLA's name for the size of its thread pool. Where one process plays several devices, each collective that
waits holds a thread, and a device may wait in several at once. A pool of one thread a device, which is what a small
machine gets, can run out, and the program then hangs until XLA ends it. Eight threads a device leave room.

glibc's allocator: XLA's CPU backend allocates the temporaries of a program anew at each execution, and glibc maps and
unmaps blocks of that size: 133,021 page faults in each step of DiT-S/4, a fifth of its time. With one arena, no mapped
blocks and no trimming the freed memory is used again (M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD of mallopt(3)).

`TPU_FLAGS` go into LIBTPU_INIT_ARGS, which libtpu reads when it starts. Every one of them is accepted by its compiler
(tests/test_xla_flags.py); none has been timed on a TPU by this project.
"""

import ctypes
import os
import re
import sys

CPU_FLAGS = ('--xla_cpu_experimental_ynn_fusion_type=individual_dot',)
THREADS_PER_DEVICE = 8
# Parameters of mallopt(3): the number of arenas, of mapped blocks, and the free bytes above which memory is returned.
_MALLOC = {-8: 1, -4: 0, -1: 2**31 - 1}

# Gathers and scatters of parameters run beside products, several steps of a fusion at a time.
_OVERLAP = {
  'xla_tpu_enable_async_collective_fusion': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': 'true',
  'xla_tpu_enable_async_collective_fusion_multiple_steps': 'true',
  'xla_tpu_overlap_compute_collective_tc': 'true',
  'xla_enable_async_all_gather': 'true',
}
# Gradients are summed over `data`, between slices above all, while the backward pass still runs.
_SUM_EARLY = {
  'xla_tpu_enable_data_parallel_all_reduce_opt': 'true',
  'xla_tpu_data_parallel_opt_different_sized_ops': 'true',
}
# No products piece by piece while the pieces of a parameter come in: where their sums do not stay on the chip, each
# piece reads and writes them. DiT-XL/2 with 16 images a chip at 256 moves 149 GB a step so on v5p, 84 on v6e; 81 and
# 52 with parameters that are gathered whole.
_GATHER_WHOLE = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '131072'}
_ALL = _OVERLAP | _SUM_EARLY | _GATHER_WHOLE
TPU_FLAGS: dict[str, dict[str, str]] = {
  'v5e': _ALL,
  'v5p': _ALL,
  # 128 MiB of on-chip memory: larger blocks of a fusion fit than by default.
  'v6e': _ALL | {'xla_tpu_scoped_vmem_limit_kib': '65536'},
  'tpu7x': _ALL,
}


def set_defaults() -> None:
  """Adds to the environment what it does not set of the above; no effect once JAX has started."""
  flags = os.environ.get('XLA_FLAGS', '').split()
  os.environ['XLA_FLAGS'] = ' '.join([*flags, *_missing(flags)])
  devices = _fake_devices(flags)
  if devices > 1:
    os.environ.setdefault('NPROC', str(THREADS_PER_DEVICE * devices))
  keep_freed_memory()


def require() -> None:
  """Adds `CPU_FLAGS` to the environment; called when jaxgen is imported.

  Raises:
    RuntimeError: JAX has started on CPUs alone, without them.
  """
  flags = os.environ.get('XLA_FLAGS', '').split()
  missing = _missing(flags)
  if missing and _started_on_cpus():
    raise RuntimeError(
      f'JAX has started without {missing[0]}, and without it some programs of the CPU are wrong: import jaxgen before '
      f'the first computation, or set XLA_FLAGS={missing[0]}'
    )
  if missing:
    os.environ['XLA_FLAGS'] = ' '.join([*flags, *missing])


def _missing(flags: list[str]) -> list[str]:
  names = {flag.partition('=')[0] for flag in flags}
  return [flag for flag in CPU_FLAGS if flag.partition('=')[0] not in names]


def _started_on_cpus() -> bool:
  """Whether JAX has its devices already, and they are CPUs; asking JAX itself would start it."""
  bridge = sys.modules.get('jax._src.xla_bridge')
  return set(getattr(bridge, '_backends', ())) == {'cpu'}


def keep_freed_memory() -> bool:
  """Makes glibc reuse the memory that XLA frees; returns whether it did.

  Nothing happens under another C library, or where the environment configures glibc's allocator itself.
  """
  environment = os.environ.get('GLIBC_TUNABLES', '')
  if 'glibc.malloc' in environment or any(re.fullmatch(r'MALLOC_\w+_', name) for name in os.environ):
    return False
  if not sys.platform.startswith('linux'):
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, 'gnu_get_libc_version') or not hasattr(libc, 'mallopt'):
    return False
  done = [libc.mallopt(parameter, value) == 1 for parameter, value in _MALLOC.items()]
  return all(done)


def tpu_init_args(generation: str) -> str:
  """The value of LIBTPU_INIT_ARGS for a generation of TPUs, such as 'v5e'."""
  if generation not in TPU_FLAGS:
    raise ValueError(f'there are no flags for {generation!r}; there are for {", ".join(TPU_FLAGS)}')
  return ' '.join(f'--{name}={value}' for name, value in TPU_FLAGS[generation].items())


def _fake_devices(flags: list[str]) -> int:
  """The number of CPU devices that the environment asks this process to play; 1 where it does not say."""
  found = re.search(r'--xla_force_host_platform_device_count=(\d+)', ' '.join(flags))
  value = os.environ.get('JAX_NUM_CPU_DEVICES') or (found.group(1) if found else '')
  return int(value) if value.isdecimal() else 1
