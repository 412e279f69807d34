"""The flags that every program of jaxgen sets: accepted by the jaxlib that is installed, and needed."""

import importlib.util
import os
import platform
import subprocess
import sys

import pytest

from jaxgen import xla_flags

# Largest entry of a batch of Jacobians of a layer norm that should be zero, or else differs from float64's.
_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import jaxgen
assert 'jax' not in sys.modules
import jax, jax.numpy as jnp, numpy as np
x, g = (np.random.default_rng(0).standard_normal(s).astype('f') for s in ((3, 16, 32), (192, 3, 16, 32)))
def norm(h):
  mean = h.mean(-1, keepdims=True)
  return (h - mean) * jax.lax.rsqrt(jnp.square(h - mean).mean(-1, keepdims=True) + 1e-6)
pull = jax.jit(lambda x, g: jax.vmap(jax.vjp(norm, x)[1])(g)[0])(x, g)
x, g = x.astype('d'), g.astype('d')
c = x - x.mean(-1, keepdims=True)
r = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + 1e-6)
want = r * (g - g.mean(-1, keepdims=True) - c * r * (g * c * r).mean(-1, keepdims=True))
print(float(np.abs(pull - want).max()))
"""


def _error(flags):
  """The error of the script in a fresh interpreter whose XLA_FLAGS were `flags`."""
  root = os.path.dirname(os.path.dirname(__file__))
  env = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
  env |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
  command = [sys.executable, '-c', _SCRIPT, root]
  result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
  assert result.returncode == 0, result.stderr
  return float(result.stdout)


def test_flags_are_accepted_and_a_vmapped_layer_norm_is_right():
  assert _error('') < 1e-4


def test_importing_jaxgen_after_jax_has_started_without_them_is_refused_in_one_line():
  root = os.path.dirname(os.path.dirname(__file__))
  env = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XLA_'))}
  env |= {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': root}
  code = 'import jax; jax.devices()\nimport jaxgen'
  result = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=120)
  assert result.stderr.splitlines()[-1].startswith(f'RuntimeError: JAX has started without {xla_flags.CPU_FLAGS[0]}')
  code = f'import os; os.environ["XLA_FLAGS"] = "{xla_flags.CPU_FLAGS[0]}"\n{code}'
  subprocess.run([sys.executable, '-c', code], env=env, check=True, timeout=120)


def test_flags_that_the_user_set_stay(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type= --xla_dump_to=/tmp/x')
  xla_flags.set_defaults()
  assert os.environ['XLA_FLAGS'] == '--xla_cpu_experimental_ynn_fusion_type= --xla_dump_to=/tmp/x'


def test_setting_twice_is_setting_once(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=/tmp/x')
  xla_flags.set_defaults()
  xla_flags.set_defaults()
  assert os.environ['XLA_FLAGS'] == ' '.join(['--xla_dump_to=/tmp/x', *xla_flags.CPU_FLAGS])


def _threads(monkeypatch, **environment):
  """What `set_defaults` leaves in NPROC."""
  for name in ('NPROC', 'XLA_FLAGS', 'JAX_NUM_CPU_DEVICES'):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  xla_flags.set_defaults()
  return os.environ.get('NPROC')


def test_fake_devices_get_threads_to_wait_in(monkeypatch):
  assert _threads(monkeypatch) is None
  assert _threads(monkeypatch, JAX_NUM_CPU_DEVICES='1') is None
  assert _threads(monkeypatch, JAX_NUM_CPU_DEVICES='8') == '64'
  assert _threads(monkeypatch, XLA_FLAGS='--xla_force_host_platform_device_count=4') == '32'
  assert _threads(monkeypatch, JAX_NUM_CPU_DEVICES='8', NPROC='3') == '3'


# Page faults of ten blocks of 64 MiB, each allocated, written and freed.
_FAULTS = """
import sys
sys.path.insert(0, sys.argv[1])
import ctypes, resource
from jaxgen import xla_flags
xla_flags.set_defaults()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def touch():
  block = libc.malloc(1 << 26)
  ctypes.memset(block, 1, 1 << 26)
  libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
  touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(**environment):
  root = os.path.dirname(os.path.dirname(__file__))
  env = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC', 'GLIBC'))} | environment
  result = subprocess.run([sys.executable, '-c', _FAULTS, root], env=env, capture_output=True, text=True, timeout=60)
  assert result.returncode == 0, result.stderr
  return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the setting is for glibc')
def test_freed_memory_is_used_again_unless_the_user_configures_the_allocator():
  assert _faults() < 1000
  assert _faults(MALLOC_ARENA_MAX_='2') > 10_000
  assert _faults(GLIBC_TUNABLES='glibc.malloc.arena_max=2') > 10_000


_TOPOLOGIES = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2', 'tpu7x': 'tpu7x:2x2x1'}

# Compiles a product whose right side is gathered, with each flag alone; then with one that there is not.
_COMPILE = """
import sys
from jaxgen.plan import chips
chips.set_environment()
import jax, jax.numpy as jnp
from jaxgen import sharding
machine, *flags = sys.argv[1:]
mesh = sharding.make_mesh(data=1, fsdp=-1, devices=chips.topology(machine).devices)
x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))
lowered = jax.jit(lambda x, w: x @ w).lower(x, x)
for flag in flags:
  name, _, value = flag.removeprefix('--').partition('=')
  lowered.compile(compiler_options={name: value})
  print('accepted', name)
try:
  lowered.compile(compiler_options={'xla_tpu_no_such_flag': 'true'})
except Exception as error:
  print('refused', type(error).__name__)
"""


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install 'jax[tpu]'")
@pytest.mark.slow
@pytest.mark.parametrize('generation', xla_flags.TPU_FLAGS)
def test_every_flag_for_tpus_is_accepted_by_their_compiler(generation):
  root = os.path.dirname(os.path.dirname(__file__))
  env = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'LIBTPU', 'TPU_'))}
  flags = xla_flags.tpu_init_args(generation).split()
  command = [sys.executable, '-c', _COMPILE, _TOPOLOGIES[generation], *flags]
  result = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  assert result.stdout.count('accepted') == len(xla_flags.TPU_FLAGS[generation])
  assert 'refused' in result.stdout
