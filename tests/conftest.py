"""Tests run on eight fake CPU devices, with shapes checked and implicit rank promotion an error."""

import gc
import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', str(pathlib.Path.home() / '.cache' / 'jaxgen' / 'test_compilation_cache')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Most of the time goes into compiling programs that run once. Without optimisation, without the emitter of fusions that
# goes through MLIR (an option of jaxlib 0.10, of which 0.12 takes no notice) and in one piece, it takes a third of
# the time. What the environment says comes after, and holds.
os.environ['XLA_FLAGS'] = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
  '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters --xla_cpu_parallel_codegen_split_count=1 '
  + os.environ.get('XLA_FLAGS', '')
)

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  the hook finds the checker by its name
from jaxgen import xla_flags

xla_flags.set_defaults()
install_import_hook('jaxgen', 'tests.typecheck.checked')


def pytest_collection_finish():
  """What is imported stays: the garbage collector need not look through it again and again."""
  gc.collect()
  gc.freeze()
