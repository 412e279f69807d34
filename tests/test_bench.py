"""`jaxgen bench`: its numbers, and its command line."""

import importlib.util
import json
import os
import sys

import jax
import numpy as np
import pytest

from jaxgen import sharding, stage_setup
from jaxgen.bench import gpu, peer, programs, sampler, start, train_step, usage
from jaxgen.bench import input as loaders
from jaxgen.cli import bench as command
from jaxgen.models.dit import DiT
from jaxgen.models.unet import STABLE, UNet
from tests import tiny_config, toys

_SLOW = "import sys, time\nprint('ready', flush=True)\nfor _ in sys.stdin: print(1e3, flush=True)"


@pytest.fixture(scope='module')
def result():
  with peer.Peer([sys.executable, '-c', _SLOW]) as other:
    return train_step.bench_train_step(toys.experiment(), steps=3, warmup=1, peer=other, peer_usage=other.usage)


def test_numbers_of_a_step_hang_together(result):
  seconds = result['step_ms'] / 1e3
  assert result['images_per_second'] == pytest.approx(16 / seconds)
  assert result['peak_share'] == pytest.approx(result['model_flops'] / seconds / result['peak_flops'])
  assert 0 < result['input_wait'] < 1
  assert result['compile_seconds'] > 0
  assert (result['device'], result['devices'], result['batch_size']) == ('cpu', 8, 16)
  assert json.loads(json.dumps(result)) == result


def test_flops_of_a_step_are_those_of_its_two_products(result):
  first, second = (2 * 16 * 8 * 8,) * 2  # the first is of data: no gradient by its input
  assert result['model_flops'] == 2 * first + 3 * second


def test_peak_memory_holds_at_least_the_state_of_a_device(result):
  state = toys.experiment()
  shapes = stage_setup.abstract_state(state)
  held = sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  assert result['peak_bytes'] >= held


def test_ratio_to_the_peer_is_of_the_same_steps(result):
  assert result['peer_step_ms'] == 1e6
  assert result['ratio'] == pytest.approx(result['step_ms'] / 1e6, rel=1e-6)


def test_processor_time_and_page_faults_are_those_of_the_process(result):
  found = result['processor']
  assert found['to_wall_time'] == pytest.approx(found['step_ms'] / result['step_ms'], rel=0.5)
  assert found['peak_share'] == pytest.approx(result['model_flops'] / (1e-3 * found['step_ms']) / found['peak_flops'])
  before = usage.own()
  np.full(2**25, 1.0).sum()  # 65,536 pages, or fewer large ones
  used = usage.own().since(before)
  assert used.seconds > 0
  of_this = usage.of_process(os.getpid())
  assert of_this.seconds == pytest.approx(usage.own().seconds, rel=0.1, abs=0.2)
  assert of_this.faults == pytest.approx(usage.own().faults, rel=0.1)


def test_loaders_read_the_same_files(tmp_path):
  loaders.write_jpegs(tmp_path, num=9, side=32)
  with pytest.raises(ValueError, match=r'has no \.jpg files'):
    loaders.jpegs(tmp_path / 'none')
  result = loaders.bench_input(
    folder=tmp_path, rounds=1, batch_size=4, size=16, peer=lambda folder: peer.Peer([sys.executable, '-c', _SLOW])
  )
  assert result['files'] == 9
  assert result['peer_images_per_second'] == 8 / 1e3
  assert result['time_to_peer'] == pytest.approx(result['peer_images_per_second'] / result['jaxgen_images_per_second'])
  assert result['grain_images_per_second'] > 0 < result['time_to_grain']


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_reports_every_part(tmp_path):
  small = UNet(
    multipliers=(1, 2),
    width=8,
    blocks=1,
    attention=(1,),
    transformer=(0, 1),
    head_size=8,
    groups=4,
    size_features=4,
    style=STABLE,
  )
  sizes = gpu.Sizes((32,), DiT(8, 1, 16, 2, 3, learn_sigma=True), 8, small, 8, 8, steps=1, samples=0)
  lines = []
  found = gpu.bench_gpu(sizes, out=tmp_path, report=lines.append)
  assert [line.partition(',')[0] for line in lines] == ['products', 'dit', 'unet']
  for name in ('dit', 'unet'):
    assert found[name]['ceiling_share'] > 0
    assert 'ENTRY' in (tmp_path / f'{name}.hlo.txt').read_text()
  assert json.loads(json.dumps(found)) == found
  broken = gpu.bench_gpu(sizes._replace(dit=DiT(5, 1, 16, 2, 3), unet_side=7), report=lines.append)
  assert broken['dit']['failed'].startswith('ValueError')
  assert broken['products']['best_flops'] > 0


def test_no_part_of_the_benchmark_of_a_gpu_begins_after_its_time():
  found = gpu.bench_gpu(seconds=-1.0, fid=lambda num: {'fid': float(num)}, report=print)
  assert all(found[name]['not_run'] == 'after -1 s' for name in ('products', 'dit', 'unet', 'fid'))


def test_a_phase_that_runs_rarely_counts_rarely():
  experiment = toys.experiment()
  phase = experiment.objective.phases[0]._replace(every=4)
  rare = experiment._replace(objective=experiment.objective._replace(phases=(phase,)))
  shapes = stage_setup.abstract_state(experiment)
  assert train_step.model_flops(rare, shapes, {}) * 4 == train_step.model_flops(experiment, shapes, {})


def test_steps_are_timed_in_cycles_of_their_phases():
  experiment = toys.experiment()
  phase, taken = experiment.objective.phases[0], []

  class Counted(programs.FixedBatch):
    def iterate(self, start_step, sharding):
      for batch in super().iterate(start_step, sharding):
        taken.append(1)
        yield batch

  rare = experiment.objective._replace(phases=(phase._replace(every=2), phase._replace(name='other', every=3)))
  data = Counted(next(experiment.data.iterate(0, sharding.replicated(experiment.mesh))))
  result = train_step.bench_train_step(
    experiment._replace(objective=rare, data=data), steps=7, warmup=2, peer=lambda: 12.0 + len(taken)
  )
  assert (result['cycle'], result['cycles'], len(taken)) == (6, 2, 18)
  np.testing.assert_allclose(result['peer_step_ms'], 1e3 * (12 + 15) / 6)  # the median of cycles after 12 and 18 steps
  np.testing.assert_allclose(result['ratio'], result['step_ms'] / result['peer_step_ms'], rtol=0.5)


def test_the_benchmark_of_stylegan2_is_configuration_f_with_fewer_features():
  for changes, size in (({'max_features': 512}, 21_523_475 + 21_507_073), ({}, 5_206_548)):
    objective = programs.stylegan2(**changes).objective
    shapes = jax.eval_shape(objective.init, jax.random.key(0), {}, {'image': np.zeros((16, 32, 32, 3), np.float32)})
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == size
  assert [(phase.name, phase.every) for phase in objective.phases] == [
    ('generator', 1),
    ('path_length', 4),
    ('discriminator', 1),
    ('r1', 16),
  ]


def test_the_benchmark_of_dit_s4_is_the_published_network():
  experiment = programs.dit_s4()
  shapes = jax.eval_shape(experiment.objective.init, jax.random.key(0), {}, experiment.data.spec)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 32_920_448
  batch = next(experiment.data.iterate(0, sharding.batch_sharding(experiment.mesh)))
  assert {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()} == {
    name: (leaf.shape, leaf.dtype) for name, leaf in experiment.data.spec.items()
  }


def test_the_benchmark_of_the_unet_is_ddpms_at_half_the_width():
  """8,952,067 parameters is what the peer, diffusers' network, has."""
  experiment = programs.unet_cifar10()
  shapes = jax.eval_shape(experiment.objective.init, jax.random.key(0), {}, experiment.data.spec)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 8_952_067


@pytest.mark.slow
def test_overhead_is_the_time_of_a_sampler_beside_its_network():
  result = sampler.bench_sampler(steps=2, rounds=1, batch_size=1, size='S/8')
  assert result['overhead'] == pytest.approx(1 - result['network_ms'] / result['sampler_ms'])
  assert result['network_ms'] > 0


@pytest.mark.slow
def test_a_start_is_timed_until_a_step_is_on_record(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
  result = start.bench_start(tiny_config.__file__, ['--config.steps=1'], rounds=1)
  assert (
    len(result['seconds']) == 1 and 0.5 < result['seconds'][0] < 120 and result['overrides'] == ['--config.steps=1']
  )


def test_a_start_that_fails_is_an_error():
  with pytest.raises(RuntimeError, match='the run ended with 2 before its first step'):
    start.bench_start('emoji_dot', rounds=1)


def test_a_peer_that_stops_is_an_error():
  with pytest.raises(RuntimeError, match="the peer program stopped, or said ''"):
    peer.Peer([sys.executable, '-c', ''])


def test_a_folder_that_is_no_clone_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'models.py is missing; --peer wants a clone'):
    peer.clone_command(peer.CLONES['dit-s4'], tmp_path, sys.executable)


# Stand-ins for what the peers import of their clones.
_DIT = """
import torch
class Net(torch.nn.Linear):
  def forward(self, x, t, y): return super().forward(x)
DiT_models = {'DiT-S/4': lambda input_size, num_classes: Net(input_size, input_size)}
"""
_STYLEGAN2_NETWORKS = """
import torch
class Generator(torch.nn.Module):
  def __init__(self, z_dim, w_dim, synthesis_kwargs, c_dim, img_resolution, img_channels):
    super().__init__()
    self.mapping, self.synthesis = torch.nn.Linear(z_dim, 2), torch.nn.Linear(2, synthesis_kwargs['channel_max'])
class Discriminator(torch.nn.Linear):
  def __init__(self, channel_max, epilogue_kwargs, c_dim, img_resolution, img_channels):
    super().__init__(channel_max, 1)
"""
_STYLEGAN2_LOSS = """
import collections
class StyleGAN2Loss:
  def __init__(self, device, G_mapping, G_synthesis, D, r1_gamma):
    self.nets, self.calls = {'G': (G_mapping, G_synthesis), 'D': (D,)}, collections.Counter()
  def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
    if phase == 'Gmain' and self.calls['Gmain'] % 16 == 0:
      assert self.calls in ({}, {'Gmain': 16, 'Greg': 4, 'Dmain': 16, 'Dreg': 1}), self.calls
      self.calls.clear()
    self.calls[phase] += 1
    for name, nets in self.nets.items():
      for parameter in (p for net in nets for p in net.parameters()):
        assert parameter.requires_grad == (name == phase[0])
        if parameter.requires_grad: parameter.sum().mul(float('nan') if phase == 'Greg' else gain).backward()
"""


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='the peer needs the `parity` extra')
@pytest.mark.parametrize(
  ('what', 'files', 'arguments'),
  [
    ('dit-s4', {'models.py': _DIT}, (2,)),
    ('stylegan2', {'training/networks.py': _STYLEGAN2_NETWORKS, 'training/loss.py': _STYLEGAN2_LOSS}, (2, 3)),
  ],
)
def test_a_peer_is_a_script_that_torch_can_run(what, files, arguments, tmp_path):
  for name, content in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
  clone = peer.CLONES[what]._replace(arguments=arguments)
  with peer.Peer(peer.clone_command(clone, tmp_path, sys.executable)) as other:
    assert 0 < other() < 60
    assert 0 < other() < 60


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--steps', '0'], '--steps is 0; it must be 1 or more'),
    (['--stepz=3'], 'unexpected --stepz=3'),
    (['dit-s4', '--config.steps=3'], 'unexpected --config.steps=3'),
    (['--peer', 'x'], '--peer is for dit-s4, stylegan2, unet-cifar10, mmdit, encode, input, sampler, not config'),
    (['input', '--peer', 'x'], 'the peer of input is `torch`, not x'),
    (['unet-cifar10', '--peer', 'x'], 'the peer of unet-cifar10 is `diffusers`, not x'),
    (['encode', '--peer', 'x'], 'the peer of encode is `diffusers`, not x'),
    (['dit-s5'], 'invalid choice'),
  ],
)
def test_mistakes_on_the_command_line_are_named(argv, message, capsys):
  with pytest.raises(SystemExit):
    command.main(argv)
  assert message in capsys.readouterr().err


def test_the_command_prints_json(monkeypatch, capsys):
  monkeypatch.setattr(programs, 'dit_s4', toys.experiment)
  assert command.main(['dit-s4', '--steps', '1']) == 0
  assert json.loads(capsys.readouterr().out)['batch_size'] == 16
