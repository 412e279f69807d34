"""Plans: what is counted, against what can be counted by hand; what does not fit; and, slowly, real TPU programs."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict

from jaxgen import sharding, stage_setup
from jaxgen.cli import plan as command
from jaxgen.cli.main import main
from jaxgen.plan import chips, fit
from jaxgen.plan import plan as plans
from jaxgen.plan.chips import GIB, Chip, Topology
from tests import toys

_CHIP = Chip('cpu', 1e12, 1 * GIB, 1e11, 1e10, 1e9, 1, 'made up')
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="compiling for TPUs needs libtpu: pip install 'jax[tpu]'"
)
needs_cuda = pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda13_plugin') is None, reason='compiling for GPUs needs jax-cuda13-plugin'
)


@pytest.fixture(autouse=True)
def same_environment():
  """A plan sets what libtpu reads when it starts; other tests must not see it."""
  before = dict(os.environ)
  yield
  os.environ.clear()
  os.environ.update(before)


@pytest.fixture(scope='module')
def machine():
  return Topology('cpu:8', _CHIP, 1, jax.devices())


@pytest.fixture(scope='module')
def found(machine):
  return plans.plan(toys.experiment(), machine)


def test_bytes_of_the_state_are_those_of_its_shards(found):
  kernels = 2 * 8 * 8
  memory = found['memory']
  assert found['parameters'] == {'net': kernels}
  assert memory['parameters'] == memory['averages'] == 4 * kernels // 4  # float32 over fsdp=4
  assert memory['optimizer'] == 2 * 4 * kernels // 4 + 4  # two moments, a count
  assert memory['frozen'] == memory['extra'] == 0
  assert memory['activations'] > 0 and memory['peak'] >= memory['parameters'] + memory['optimizer']
  assert memory['limit'] == GIB


def test_operations_and_the_roofline(found):
  product = 2 * 16 * 8 * 8
  assert found['flops'] == {'model': 5 * product, 'executed': 5 * product}  # of data there is no gradient
  line = found['roofline']
  assert line['compute'] == pytest.approx(5 * product / 8e12)
  assert line['memory'] == pytest.approx(found['memory_traffic'] / 1e11)
  sent = sum(kind['bytes_within_slice'] for kind in found['collectives'].values())
  assert sent > 0 and line['neighbours'] == pytest.approx(sent / 1e10)
  assert line['network'] == 0
  assert line['step'] == line[line['limited_by']] == max(line[name] for name in ('compute', 'memory', 'neighbours'))
  assert found['images_per_second'] == pytest.approx(16 / line['step'])
  assert found['peak_share'] == pytest.approx(5 * product / line['step'] / 8e12)
  assert found['run']['days'] == pytest.approx(12 * line['step'] / 86400)
  assert found['run']['chip_hours'] == pytest.approx(8 * 12 * line['step'] / 3600)


def test_theory_of_fully_sharded_training(found, machine):
  whole = 2 * 128  # bytes
  assert found['fsdp_theory'] == 3 * whole * 3 / 4 + 2 * (whole / 4) * 1 / 2  # four shards, two copies
  abstract = stage_setup.abstract_state(toys.experiment(mesh=sharding.make_mesh(data=8)))
  assert plans.fsdp_theory(abstract, sharding.make_mesh(data=8).shape, 4) == 2 * whole * 7 / 8


def test_a_plan_reads_as_text_as_a_row_and_as_json(found):
  assert json.loads(json.dumps(found)) == found
  assert 'mesh data 2 x fsdp 4, batch 16' in plans.text(found)
  assert plans.row(found).startswith('| cpu:8 | 8 | data 2 x fsdp 4 | 16 |')


def test_the_name_of_a_machine_tells_its_slices(machine):
  assert machine._replace(name='v5e:4x4', slices=2).label == '2 x v5e:4x4'
  assert machine._replace(name='h100:2x8', slices=2).label == 'h100:2x8'


@pytest.mark.parametrize(
  ('message', 'needed'),
  [
    ('Ran out of memory in memory space hbm. Used 22.62G of 15.75G hbm. Exceeded', 22.62 * GIB),
    ('the total memory required for HLO temporaries (480.00G) exceeds available HBM (15.75G).', 480 * GIB),
    ('no number here', None),
  ],
)
def test_a_program_that_does_not_fit_says_by_how_much(monkeypatch, machine, message, needed):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {message}')

  monkeypatch.setattr(stage_setup, 'compile_step', refuse)
  with pytest.raises(plans.DoesNotFit, match=r'on a device of 1\.00 GiB') as raised:
    plans.plan(toys.experiment(), machine)
  assert raised.value.needed == needed


def test_other_errors_of_the_compiler_are_not_about_memory(monkeypatch, machine):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')

  monkeypatch.setattr(stage_setup, 'compile_step', refuse)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    plans.plan(toys.experiment(), machine)


class Fakes:
  """A compiler with a simple law of memory: the state, and 8 GiB of activations shared by the micro-batches."""

  fields = {'mesh.data': 8, 'mesh.fsdp': 1, 'accumulate': 1}  # noqa: RUF012

  def __init__(self, state: float, activations: float):
    self.state, self.activations, self.compiled = state, activations, []

  def build(self, changes):
    mesh = sharding.make_mesh(data=changes.get('mesh.data', 8), fsdp=changes.get('mesh.fsdp', 1))
    stage = toys.experiment(mesh=mesh, batch_size=64, accumulate=changes.get('accumulate', 1))
    sharding.check_batch_size(64, mesh, accumulate=stage.accumulate)
    return stage

  def plan(self, stage, machine):
    self.compiled.append((stage.mesh.shape['fsdp'], stage.accumulate))
    needed = self.state / stage.mesh.shape['fsdp'] + self.activations / stage.accumulate
    if needed > 1:
      raise plans.DoesNotFit(f'the program needs {needed:.2f} GiB', needed * GIB)
    return {'memory': {'peak': needed * GIB, 'limit': GIB}, 'roofline': {'step': 0.01 * stage.accumulate}}


def _search(monkeypatch, machine, fakes, wanted):
  monkeypatch.setattr(fit, 'plan', fakes.plan)
  return list(fit.search(fakes.build, fakes.fields, machine, say=lambda _: None, wanted=wanted))


def test_what_fits_as_it_is_wins(monkeypatch, machine):
  fakes = Fakes(state=0.1, activations=0.5)
  assert _search(monkeypatch, machine, fakes, 1)[0][0] == {}
  assert fakes.compiled == [(1, 1)]


def test_the_search_compiles_no_hopeless_candidates(monkeypatch, machine):
  fakes = Fakes(state=0.1, activations=3.0)
  changes, made = _search(monkeypatch, machine, fakes, 1)[0]
  assert changes['accumulate'] == 4 and made['memory']['peak'] < GIB
  assert {accumulate for _, accumulate in fakes.compiled} == {1, 4}  # two micro-batches are seen to be too few
  assert len(fakes.compiled) == 2


class KeepingFakes(Fakes):
  """Activations and the step depend on what is kept: `none` is large and slow to move, `dots` is the fastest."""

  fields = Fakes.fields | {'remat': 'full'}
  shares = {'none': (1.0, 2.0), 'dots': (0.4, 1.0), 'full': (0.1, 1.3)}  # noqa: RUF012  activations, step

  def build(self, changes):
    self.kept = changes.get('remat', 'full')
    return super().build(changes)

  def plan(self, stage, machine):
    activations, step = self.shares[self.kept]
    needed = self.state + activations * self.activations / stage.accumulate
    self.compiled.append((self.kept, stage.accumulate))
    if needed > 1:
      raise plans.DoesNotFit(f'the program needs {needed:.2f} GiB', needed * GIB)
    roofline = {'step': 0.01 * step, 'limited_by': 'memory'}
    return {'memory': {'peak': needed * GIB, 'limit': GIB}, 'roofline': roofline}


def test_the_best_is_the_smallest_roofline_of_all_policies(monkeypatch, machine):
  fakes = KeepingFakes(state=0.1, activations=0.5)
  monkeypatch.setattr(fit, 'plan', fakes.plan)
  found = fit.best(fakes.build, fakes.fields, machine, say=lambda _: None)
  assert [changes.get('remat', 'full') for changes, _ in found] == ['dots', 'full', 'none']
  assert fit.choice(found) == [
    'fits best: --config.remat=dots, limited by memory',
    '  1.30 times the step, limited by memory, 0.15 GiB: as it is',
    '  2.00 times the step, limited by memory, 0.60 GiB: --config.remat=none',
  ]


def test_the_best_leaves_a_margin_of_memory(monkeypatch, machine):
  fakes = KeepingFakes(state=0.1, activations=2.2)  # `dots` would take 0.98
  monkeypatch.setattr(fit, 'plan', fakes.plan)
  best = fit.best(fakes.build, fakes.fields, machine, say=lambda _: None)
  assert all(made['memory']['peak'] <= 0.95 * GIB for _, made in best)
  assert ('dots', 1) in fakes.compiled and ({'remat': 'dots'}) not in [changes for changes, _ in best]


def test_cost_of_a_number_of_images(found):
  text = plans.cost(found, images=1e6, price=2.0)
  hours = 1e6 / found['images_per_second'] / 3600 * found['chips']
  assert text.startswith('1,000,000 images (') and f'{hours:,.1f} chip-hours at least, {2 * hours:,.2f} at 2' in text


def test_advice_names_the_three_cheapest_changes_that_were_compiled(monkeypatch, machine):
  fakes = Fakes(state=0.1, activations=1.5)
  monkeypatch.setattr(fit, 'plan', fakes.plan)
  error = plans.DoesNotFit('the program needs 1.60 GiB', 1.6 * GIB)
  text = fit.advice(fakes.build, fakes.fields, machine, error, say=lambda _: None)
  options = re.findall(r'((?:--config\.[\w.]+=\d+ ?)+)\((0\.\d+) GiB, at least (\d+) ms', text)
  assert text.startswith('the program needs 1.60 GiB. With these it fits: ') and len(options) == 3
  assert '--config.accumulate=2 ' in [flags for flags, _, _ in options]
  assert [int(ms) for _, _, ms in options] == sorted(int(ms) for _, _, ms in options)


def test_where_nothing_fits_the_advice_is_more_chips(monkeypatch, machine):
  fakes = Fakes(state=80.0, activations=900.0)
  monkeypatch.setattr(fit, 'plan', fakes.plan)
  error = plans.DoesNotFit('the program needs 980.00 GiB', 980.0 * GIB)
  text = fit.advice(fakes.build, fakes.fields, machine, error, say=lambda _: None)
  assert text.endswith('take more chips, a smaller batch or a smaller network')


def test_batches_that_cannot_run_are_named_with_those_that_could():
  config = ConfigDict({'mesh': {'data': -1}, 'batch_size': 12, 'accumulate': 2, 'fid': {'batch_size': 8, 'every': 3}})
  config.sampling = ConfigDict({'batch_size': 4})
  with pytest.raises(ValueError, match='do not divide over 8 devices') as error:
    command._check_batches(config)
  assert str(error.value).endswith('would: --config.batch_size=16 (is 12) --config.sampling.batch_size=8 (is 4)')
  config.batch_size, config.sampling.batch_size = 16, 8
  command._check_batches(config)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config', 'emoji_dit'], 'needs --config and --topology'),
    (['--config', 'emoji_dit', '--topology', 'v99:4x4'], "topology 'v99:4x4' is not understood"),
    (['--config', 'emoji_dit', '--topology', 'v5e'], 'wanted GENERATION:SHAPE'),
    (['--config', 'emoji_dit', '--topology', 'v5e:4x4', '--slices', '0'], 'slices is 0'),
    (['--config', 'emoji_dit', '--topology', 'h100:8'], "topology 'h100:8' is not understood; wanted h100:NODESxGPUS"),
    (['--config', 'emoji_dit', '--topology', 'h100:0x8'], 'wanted h100:NODESxGPUS'),
    (['--config', 'emoji_dit', '--topology', 'h100:2x8', '--slices', '2'], "GPUs' nodes are in the topology's shape"),
    pytest.param(
      ['--config', 'emoji_dit', '--topology', 'v5e:99x99'], "libtpu knows no topology 'v5e:99x99'", marks=needs_libtpu
    ),
    pytest.param(
      ['--config', 'emoji_dit', '--topology', 'v5e:4x4', '--mesh', 'data=3'], 'does not cover 16', marks=needs_libtpu
    ),
    pytest.param(
      ['--config', 'emoji_dit', '--topology', 'v5e:4x4', '--mesh', 'dta=16'], "no field 'mesh.dta'", marks=needs_libtpu
    ),
  ],
)
def test_a_plan_that_cannot_be_made_says_why(arguments, message, capsys):
  assert main(['plan', *arguments]) == 2
  assert message in capsys.readouterr().err


def test_without_libtpu_the_error_names_it(capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert main(['plan', '--config', 'emoji_dit', '--topology', 'v5e:4x4']) == 2
  assert "pip install 'jax[tpu]'" in capsys.readouterr().err


def test_without_the_plug_in_for_gpus_the_error_names_it(capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert main(['plan', '--config', 'emoji_dit', '--topology', 'h100:2x8']) == 2
  assert 'pip install jax-cuda13-plugin jax-cuda13-pjrt' in capsys.readouterr().err


def test_launchers_can_have_the_flags(capsys):
  assert main(['plan', '--print-flags', 'v5e']) == 0
  assert '--xla_tpu_enable_async_collective_fusion=true' in capsys.readouterr().out


@pytest.fixture
def no_cache():
  jax.config.update('jax_enable_compilation_cache', False)
  yield
  jax.config.update('jax_enable_compilation_cache', True)


@needs_libtpu
def test_a_program_for_tpus_is_compiled_without_one(no_cache):
  chips.set_environment()
  machine = chips.topology('v5e:2x4')
  with sharding.devices_are(machine.devices):
    stage = toys.experiment()
  found = plans.plan(stage, machine)
  assert (found['chips'], found['peaks']['kind']) == (8, 'TPU v5 lite')
  assert found['memory']['parameters'] == 128 and 0 < found['memory']['peak'] < found['memory']['limit']
  assert found['collectives']


@needs_cuda
def test_a_program_for_gpus_is_compiled_without_one(no_cache):
  chips.set_environment()
  machine = chips.topology('h100:2x4')
  assert [machine.slice_of(device) for device in machine.devices] == [0] * 4 + [1] * 4
  with sharding.devices_are(machine.devices):
    stage = toys.experiment()
  found = plans.plan(stage, machine)
  assert (found['chips'], found['slices'], found['peaks']['kind']) == (8, 2, 'NVIDIA H100 80GB HBM3')
  assert found['memory']['parameters'] == 128 and 0 < found['memory']['peak'] < found['memory']['limit']
  assert sum(kind['bytes_within_slice'] for kind in found['collectives'].values()) > 0  # fsdp, in a node
  assert sum(kind['bytes_between_slices'] for kind in found['collectives'].values()) > 0  # data, between the two
  assert "attention is XLA's" in plans.text(found) and plans.row(found).startswith('| h100:2x4 | 8 |')


def test_a_program_that_a_gpu_has_no_memory_for_is_refused(machine):
  """The compiler for GPUs, unlike a TPU's, does not mind."""
  small = machine._replace(chip=_CHIP._replace(memory=300))  # the state alone takes more
  with pytest.raises(plans.DoesNotFit, match='the program needs') as raised:
    plans.plan(toys.experiment(), small)
  assert raised.value.needed > 300


# What follows compiles networks; it takes minutes.


def _plan(*arguments, check=True):
  """The command, in its own process and with nothing compiled before; its JSON, or its error."""
  root = os.path.dirname(os.path.dirname(__file__))
  env = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XLA_', 'LIBTPU'))}
  env |= {'JAX_ENABLE_COMPILATION_CACHE': '0'}
  command = [sys.executable, '-m', 'jaxgen.cli.main', 'plan', *arguments, '--json', '/dev/stdout', '--row']
  result = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
  assert 'Involuntary full rematerialization' not in result.stderr
  if not check:
    return result
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.partition('\n')[2])


_SMALL = ('--config', 'dit_xl2_imagenet256', '--config.size=S/2')


@needs_libtpu
@pytest.mark.slow
def test_dit_on_two_slices_and_its_sampler():
  found = _plan(*_SMALL, '--topology', 'v5e:4x4', '--slices', '2', '--mesh', 'data=2,fsdp=16', '--sample', '64')
  within = sum(kind['bytes_within_slice'] for kind in found['collectives'].values())
  between = sum(kind['bytes_between_slices'] for kind in found['collectives'].values())
  assert within + between == pytest.approx(found['fsdp_theory'], rel=0.25)
  gradients = found['parameters']['net'] / 16
  assert 2 * gradients < between < 6 * gradients  # summed over two slices, in two or four bytes, and little else
  assert found['sample']['memory']['peak'] < found['memory']['limit']
  gathers = found['collectives']['all-gather']
  gathered = gathers['bytes_within_slice'] + gathers['bytes_between_slices']
  assert gathers['bytes_asynchronous'] > 0.9 * gathered  # parameters come while the block before is computed


@needs_libtpu
@pytest.mark.slow
def test_a_program_over_the_memory_is_refused_with_changes_that_fit():
  arguments = (*_SMALL, '--topology', 'v5e:2x2', '--config.batch_size=4096', '--config.remat=none')
  refused = _plan(*arguments, check=False)
  assert refused.returncode == 2
  options = re.findall(r'((?:--config\.[\w.]+=\w+ ?)+)\((\d+\.\d+) GiB', refused.stderr)
  assert len(options) == 3 and all(float(peak) < 15.75 for _, peak in options)
  cheapest = _plan(*arguments, *options[0][0].split())
  assert cheapest['memory']['peak'] / GIB == pytest.approx(float(options[0][1]), abs=0.01)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize('name', ['none', 'dots', 'offload', 'full'])
def test_what_is_kept_decides_the_memory(name):
  found = _plan(*_SMALL, '--topology', 'v5e:2x2', '--config.batch_size=512', f'--config.remat={name}')
  activations, on_host = found['memory']['activations'] / GIB, found['memory']['on_host'] / GIB
  assert (on_host > 0.1) == (name == 'offload')
  low, high = {'none': (3, 16), 'dots': (1, 6), 'offload': (0.1, 3), 'full': (0.1, 1.5)}[name]
  assert low < activations < high


# Compiles the train step of a DiT at depths, in a process of its own; prints the seconds of processors.
_AT_DEPTHS = """
import os, sys
from jaxgen import xla_flags
from jaxgen.plan import chips
chips.set_environment()
os.environ['LIBTPU_INIT_ARGS'] = xla_flags.tpu_init_args('v5e')
from jaxgen import sharding, stage_setup
from jaxgen.cli.config import load_config
from jaxgen.models import dit
from jaxgen.plan import plan
machine = chips.topology('v5e:2x2')
config, module = load_config('dit_xl2_imagenet256', ['--config.dataset=synthetic', '--config.size=S/2'])
for depth in map(int, sys.argv[1:]):
  dit.SIZES['S'] = dit.SIZES['S']._replace(depth=depth)
  with sharding.devices_are(machine.devices):
    stage = module.build(config)
  abstract, frozen = stage_setup.abstract_state(stage), plan.abstract_frozen(stage)
  compiled, took = plan.timed(lambda: stage_setup.compile_step(stage, abstract, frozen), machine)
  print(took['compile_processor_seconds'])
"""


@needs_libtpu
@pytest.mark.slow
def test_compile_time_does_not_grow_with_depth():
  """In seconds of processors, so that a machine that is busy with other things does not matter."""
  root = os.path.dirname(os.path.dirname(__file__))
  env = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XLA_', 'LIBTPU'))}
  command = [sys.executable, '-c', _AT_DEPTHS, '56', '14']  # what is done once counts against the deep one
  result = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  deep, shallow = map(float, result.stdout.split()[-2:])
  print(f'depth 56: {deep:.1f} s of processors, depth 14: {shallow:.1f}, ratio {deep / shallow:.3f}')
  assert deep < 1.3 * shallow
