"""`jaxgen bench`: its numbers, and its command line."""

import importlib.util
import json
import sys

import jax
import numpy as np
import pytest

from jaxgen import bench
from jaxgen.cli import bench as command
from tests import toys

_SLOW = "import sys, time\nprint('ready', flush=True)\nfor _ in sys.stdin: print(1e3, flush=True)"


@pytest.fixture(scope='module')
def result():
  with bench.Peer([sys.executable, '-c', _SLOW]) as peer:
    return bench.bench_train_step(toys.experiment(), steps=3, warmup=1, peer=peer)


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
  shapes = bench.train.abstract_state(state)
  held = sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  assert result['peak_bytes'] >= held


def test_ratio_to_the_peer_is_of_the_same_steps(result):
  assert result['peer_step_ms'] == 1e6
  assert result['ratio'] == pytest.approx(result['step_ms'] / 1e6, rel=1e-6)


def test_a_phase_that_runs_rarely_counts_rarely():
  experiment = toys.experiment()
  phase = experiment.objective.phases[0]._replace(every=4)
  rare = experiment._replace(objective=experiment.objective._replace(phases=(phase,)))
  shapes = bench.train.abstract_state(experiment)
  assert bench.model_flops(rare, shapes, {}) * 4 == bench.model_flops(experiment, shapes, {})


def test_the_benchmark_of_dit_s4_is_the_published_network():
  experiment = bench.dit_s4()
  shapes = jax.eval_shape(experiment.objective.init, jax.random.key(0), experiment.data.spec)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 32_920_448
  batch = next(experiment.data.iterate(0, bench.sharding.batch_sharding(experiment.mesh)))
  assert {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()} == {
    name: (leaf.shape, leaf.dtype) for name, leaf in experiment.data.spec.items()
  }


def test_the_benchmark_of_the_unet_is_ddpms_at_half_the_width():
  """8,952,067 parameters is what the peer, diffusers' network, has."""
  experiment = bench.unet_cifar10()
  shapes = jax.eval_shape(experiment.objective.init, jax.random.key(0), experiment.data.spec)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 8_952_067


@pytest.mark.slow
def test_overhead_is_the_time_of_a_sampler_beside_its_network():
  result = bench.bench_sampler(steps=2, rounds=1, batch_size=1, size='S/8')
  assert result['overhead'] == pytest.approx(1 - result['network_ms'] / result['sampler_ms'])
  assert result['network_ms'] > 0


def test_a_peer_that_stops_is_an_error():
  with pytest.raises(RuntimeError, match="the peer program stopped, or said ''"):
    bench.Peer([sys.executable, '-c', ''])


def test_a_folder_that_is_no_clone_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'models.py is missing; --peer wants a clone'):
    bench.torch_dit_command(tmp_path, sys.executable)


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='the peer needs the `parity` extra')
def test_the_peer_is_a_script_that_torch_can_run(tmp_path):
  (tmp_path / 'models.py').write_text(
    'import torch\n'
    'class Net(torch.nn.Linear):\n'
    '  def forward(self, x, t, y): return super().forward(x)\n'
    "DiT_models = {'DiT-S/4': lambda input_size, num_classes: Net(input_size, input_size)}\n"
  )
  with bench.Peer(bench.torch_dit_command(tmp_path, sys.executable, batch_size=2)) as peer:
    assert 0 < peer() < 60


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--steps', '0'], '--steps is 0; it must be 1 or more'),
    (['--stepz=3'], 'unexpected --stepz=3'),
    (['dit-s4', '--config.steps=3'], 'unexpected --config.steps=3'),
    (['--peer', 'x'], '--peer is for dit-s4 and unet-cifar10, not config'),
    (['unet-cifar10', '--peer', 'x'], 'the peer of unet-cifar10 is `diffusers`, not x'),
    (['dit-s5'], 'invalid choice'),
  ],
)
def test_mistakes_on_the_command_line_are_named(argv, message, capsys):
  with pytest.raises(SystemExit):
    command.main(argv)
  assert message in capsys.readouterr().err


def test_the_command_prints_json(monkeypatch, capsys):
  monkeypatch.setattr(bench, 'dit_s4', toys.experiment)
  assert command.main(['dit-s4', '--steps', '1']) == 0
  assert json.loads(capsys.readouterr().out)['batch_size'] == 16
