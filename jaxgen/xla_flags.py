"""Settings of XLA's CPU backend, made before JAX starts.

`--xla_cpu_experimental_ynn_fusion_type=dot`: by default jaxlib 0.10 also gives reductions to YNNPACK, and some of them
come out wrong: the Jacobian of a layer norm, taken with `vmap`, mixed images (tests/test_xla_flags.py). Products may
stay with it: they are right, and faster than Eigen's.

`NPROC`: XLA's name for the size of its thread pool. Where one process plays several devices, each collective that
waits holds a thread, and a device may wait in several at once. A pool of one thread a device, which is what a small
machine gets, can run out, and the program then hangs until XLA ends it. Eight threads a device leave room.
"""

import os
import re

CPU_FLAGS = ('--xla_cpu_experimental_ynn_fusion_type=dot',)
THREADS_PER_DEVICE = 8


def set_defaults() -> None:
  """Adds to the environment what it does not set of the above; no effect once JAX has started."""
  flags = os.environ.get('XLA_FLAGS', '').split()
  names = {flag.partition('=')[0] for flag in flags}
  missing = [flag for flag in CPU_FLAGS if flag.partition('=')[0] not in names]
  os.environ['XLA_FLAGS'] = ' '.join([*flags, *missing])
  devices = _fake_devices(flags)
  if devices > 1:
    os.environ.setdefault('NPROC', str(THREADS_PER_DEVICE * devices))


def _fake_devices(flags: list[str]) -> int:
  """The number of CPU devices that the environment asks this process to play; 1 where it does not say."""
  asked = re.search(r'--xla_force_host_platform_device_count=(\d+)', ' '.join(flags))
  value = os.environ.get('JAX_NUM_CPU_DEVICES') or (asked.group(1) if asked else '')
  return int(value) if value.isdecimal() else 1
