"""Flags of XLA's CPU backend, set before JAX starts.

`--xla_cpu_experimental_ynn_fusion_type=dot`: by default jaxlib 0.10 also gives reductions to YNNPACK, and some of them
come out wrong: the Jacobian of a layer norm, taken with `vmap`, mixed images (tests/test_xla_flags.py). Products may
stay with it: they are right, and faster than Eigen's.
"""

import os

CPU_FLAGS = ('--xla_cpu_experimental_ynn_fusion_type=dot',)


def set_defaults() -> None:
  """Adds to the environment's XLA_FLAGS those of CPU_FLAGS that it does not set; no effect once JAX has started."""
  flags = os.environ.get('XLA_FLAGS', '').split()
  names = {flag.partition('=')[0] for flag in flags}
  missing = [flag for flag in CPU_FLAGS if flag.partition('=')[0] not in names]
  os.environ['XLA_FLAGS'] = ' '.join([*flags, *missing])
